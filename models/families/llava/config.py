"""Settings of a LLaVA-1.5 model, in this project's words: plain, frozen and hashable."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from models.checkpoints.hf_fields import token_ids
from models.checkpoints.hf_rope import read_rope
from models.families.llava.settings import (
    LlavaSettings,
    TextSettings,
    VisionSettings,
    layer_window,
    square,
    text_settings,
    vision_settings,
)
from models.generation.sampling import Sampling
from models.layers.norms import Activation
from models.layers.rope import RopeConfig
from models.messages import show

__all__ = ["LlavaConfig", "TextConfig", "VisionConfig"]


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower.

    Attributes:
        width: channels of a patch. mlp_width: hidden channels of a block's MLP.
        depth: layers of the original tower; those above `num_layers` are neither held nor run.
        feature_layers: after how many layers features are taken; several are concatenated.
        keep_class_token: whether the class token is one of the features.
    """

    width: int
    mlp_width: int
    depth: int
    num_heads: int
    image_size: int
    patch_size: int
    feature_layers: tuple[int, ...]
    keep_class_token: bool = False
    activation: Activation = Activation.QUICK_GELU
    norm_epsilon: float = 1e-5

    @property
    def num_layers(self) -> int:
        """Layers that are held and run."""
        return max(self.feature_layers)

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_features(self) -> int:
        """Features, and so visual tokens, of one image."""
        return self.num_patches + self.keep_class_token

    @property
    def feature_width(self) -> int:
        """Channels of one feature."""
        return self.width * len(self.feature_layers)

    @classmethod
    def from_hf(
        cls, hf: VisionSettings, *, feature_layers: int | tuple[int, ...], keep_class_token: bool
    ) -> Self:
        """From the tower's fields and the two that LLaVA adds.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: settings that contradict each other, named.
        """
        depth, heads = hf.num_hidden_layers, hf.num_attention_heads
        chosen = (feature_layers,) if isinstance(feature_layers, int) else feature_layers
        resolved = tuple(index if index >= 0 else depth + 1 + index for index in chosen)
        if not resolved or min(resolved) < 0 or max(resolved) > depth:
            raise ValueError(
                f"vision_feature_layer={show(feature_layers)} points outside the {depth} vision "
                f"layers"
            )
        if max(resolved) == 0:
            raise NotImplementedError(
                f"vision_feature_layer={show(feature_layers)} uses no vision layer"
            )
        if hf.hidden_size % heads:
            raise ValueError(
                f"vision_config.hidden_size: expected a multiple of num_attention_heads={heads}, "
                f"got {hf.hidden_size}"
            )
        image_size = square(hf.image_size, "vision_config.image_size")
        patch_size = square(hf.patch_size, "vision_config.patch_size")
        if patch_size > image_size:
            raise ValueError(
                f"vision_config.patch_size: expected at most image_size={image_size}, "
                f"got {patch_size}"
            )
        return cls(
            width=hf.hidden_size,
            mlp_width=hf.intermediate_size,
            depth=depth,
            num_heads=heads,
            image_size=image_size,
            patch_size=patch_size,
            feature_layers=resolved,
            keep_class_token=keep_class_token,
            activation=hf.hidden_act,
            norm_epsilon=hf.layer_norm_eps,
        )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A LLaMA, Mistral or Ministral text tower: they differ in their sliding windows only.

    Attributes:
        width: channels of a token. mlp_width: hidden channels of a block's MLP.
        tied_head: whether the embedding doubles as the output head.
        sliding_window: positions that a token sees, its own the last; None: all before it.
        full_layers: numbers of the layers that see all nevertheless.
    """

    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeConfig
    tied_head: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = Activation.SILU
    norm_epsilon: float = 1e-6
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()

    @property
    def logits_scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_dim**-0.5

    @classmethod
    def from_hf(cls, hf: TextSettings, *, tied_head: bool) -> Self:
        """From the tower's fields. Raises as `VisionConfig.from_hf` does."""
        heads = hf.num_attention_heads
        kv_heads = heads if hf.num_key_value_heads is None else hf.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(
                f"text_config.num_key_value_heads: expected a divisor of "
                f"num_attention_heads={heads}, got {kv_heads}"
            )
        if hf.head_dim is None and hf.hidden_size % heads:
            raise ValueError(
                f"text_config.hidden_size: expected a multiple of num_attention_heads={heads}, "
                f"got {hf.hidden_size}"
            )
        head_dim = hf.hidden_size // heads if hf.head_dim is None else hf.head_dim
        sliding_window, full_layers = layer_window(hf)
        return cls(
            vocab_size=hf.vocab_size,
            width=hf.hidden_size,
            mlp_width=hf.intermediate_size,
            num_layers=hf.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rope=read_rope(hf, head_dim, "text_config"),
            tied_head=tied_head,
            attention_bias=hf.attention_bias,
            mlp_bias=hf.mlp_bias,
            activation=hf.hidden_act,
            norm_epsilon=hf.rms_norm_eps,
            sliding_window=sliding_window,
            full_layers=full_layers,
        )


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA-1.5 model.

    Attributes:
        image_token_id: the token whose embedding an image feature replaces.
        eos_token_ids: tokens that end an answer.
        sampling: how the checkpoint wants tokens chosen.
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    projector_activation: Activation = Activation.GELU
    projector_bias: bool = True
    eos_token_ids: tuple[int, ...] = ()
    sampling: Sampling = Sampling()

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = LlavaSettings.read(content)
        vision, text = vision_settings(hf), text_settings(hf)
        eos = text.eos_token_id if hf.eos_token_id is None else hf.eos_token_id
        return cls(
            vision=VisionConfig.from_hf(
                vision,
                feature_layers=hf.vision_feature_layer,
                keep_class_token=hf.vision_feature_select_strategy == "full",
            ),
            text=TextConfig.from_hf(
                text, tied_head=hf.tie_word_embeddings or text.tie_word_embeddings
            ),
            image_token_id=hf.image_token_index if hf.image_token_id is None else hf.image_token_id,
            projector_activation=hf.projector_hidden_act,
            projector_bias=hf.multimodal_projector_bias,
            eos_token_ids=token_ids(eos),
        )
