"""Settings of a LLaVA-1.5 model, in this project's words: plain, frozen and hashable."""

import dataclasses
from typing import Any, Self

from models.layers import Activation
from models.llava.from_hf import activation, read_rope, read_window, require, square
from models.rope import RopeConfig

__all__ = ["TEXT_TOWERS", "VISION_TOWERS", "LlavaConfig", "TextConfig", "VisionConfig"]

# By model_type, transformers' default first.
TEXT_TOWERS = ("llama", "mistral", "ministral")
VISION_TOWERS = ("clip_vision_model",)


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
    def from_hf(cls, hf: Any, *, feature_layers: int | list[int], keep_class_token: bool) -> Self:
        """From transformers' CLIPVisionConfig and the two settings that LLaVA adds.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
        """
        require(hf, "model_type", *VISION_TOWERS, where="vision_config")
        require(hf, "num_channels", 3, where="vision_config")
        depth = hf.num_hidden_layers
        chosen = [feature_layers] if isinstance(feature_layers, int) else list(feature_layers)
        resolved = tuple(index if index >= 0 else depth + 1 + index for index in chosen)
        if not resolved or min(resolved) < 0 or max(resolved) > depth:
            raise ValueError(
                f"vision_feature_layer={feature_layers} points outside the {depth} vision layers"
            )
        if max(resolved) == 0:
            raise NotImplementedError(f"vision_feature_layer={feature_layers} uses no vision layer")
        return cls(
            width=hf.hidden_size,
            mlp_width=hf.intermediate_size,
            depth=depth,
            num_heads=hf.num_attention_heads,
            image_size=square(hf.image_size, "vision_config.image_size"),
            patch_size=square(hf.patch_size, "vision_config.patch_size"),
            feature_layers=resolved,
            keep_class_token=keep_class_token,
            activation=activation(hf.hidden_act, "vision_config.hidden_act"),
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
    def from_hf(cls, hf: Any, *, tied_head: bool) -> Self:
        """From transformers' LlamaConfig, MistralConfig or MinistralConfig.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
        """
        require(hf, "model_type", *TEXT_TOWERS, where="text_config")
        require(hf, "attention_chunk_size", None, where="text_config")
        head_dim = hf.head_dim or hf.hidden_size // hf.num_attention_heads
        sliding_window, full_layers = read_window(hf)
        return cls(
            vocab_size=hf.vocab_size,
            width=hf.hidden_size,
            mlp_width=hf.intermediate_size,
            num_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            num_kv_heads=hf.num_key_value_heads,
            head_dim=head_dim,
            rope=read_rope(hf, head_dim),
            tied_head=tied_head,
            attention_bias=getattr(hf, "attention_bias", False),
            mlp_bias=getattr(hf, "mlp_bias", False),
            activation=activation(hf.hidden_act, "text_config.hidden_act"),
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
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    projector_activation: Activation = Activation.GELU
    projector_bias: bool = True
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, hf: Any) -> Self:
        """From transformers' LlavaConfig, read from a file of transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
        """
        require(hf, "model_type", "llava", where="config")
        require(hf, "quantization_config", None, where="config")
        strategy = hf.vision_feature_select_strategy
        if strategy not in ("default", "full"):
            raise NotImplementedError(f"vision_feature_select_strategy={strategy!r}")
        eos = getattr(hf, "eos_token_id", None)
        eos = hf.text_config.eos_token_id if eos is None else eos
        return cls(
            vision=VisionConfig.from_hf(
                hf.vision_config,
                feature_layers=hf.vision_feature_layer,
                keep_class_token=strategy == "full",
            ),
            text=TextConfig.from_hf(hf.text_config, tied_head=hf.tie_word_embeddings),
            image_token_id=hf.image_token_index,
            projector_activation=activation(hf.projector_hidden_act, "projector_hidden_act"),
            projector_bias=hf.multimodal_projector_bias,
            eos_token_ids=() if eos is None else tuple([eos] if isinstance(eos, int) else eos),
        )
