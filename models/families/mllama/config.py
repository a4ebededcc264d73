"""Settings of an Mllama model."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import (
    NO_EFFECT,
    ActivationName,
    Count,
    Epsilon,
    Length,
    Side,
    Theta,
    TokenId,
    TokenIds,
    Width,
)
from models.checkpoints.hf_settings import Between, Settings
from models.families.base import ModelConfig
from models.families.mllama.vision import MllamaVisionConfig
from models.families.settings import FamilySettings
from models.layers.activations import Activation
from models.text.config import TextConfig
from models.text.settings import LlamaSettings
from models.vision.encoder import EncoderConfig
from models.vision.settings import square
from vkq_jax.messages import show

__all__ = ["MllamaConfig", "MllamaSettings", "MllamaTextSettings", "MllamaVisionSettings"]

_Tiles = Annotated[int, Between(1, 128)]
_Layer = Annotated[int, Between(-4096, 4095)]
_EXTRA_EMBEDDINGS = 8

_RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MllamaVisionSettings(Settings):
    """`vision_config`."""

    model_type: Literal["mllama_vision_model"] = "mllama_vision_model"
    hidden_size: Width = 1280
    hidden_act: ActivationName = Activation.GELU
    num_hidden_layers: Count = 32
    num_global_layers: Count = 8
    attention_heads: Count = 16
    num_channels: Literal[3] = 3
    intermediate_size: Width = 5120
    vision_output_dim: Width = 7680
    image_size: Side | tuple[Side, ...] = 448
    patch_size: Side | tuple[Side, ...] = 14
    norm_eps: Epsilon = 1e-5
    max_num_tiles: _Tiles = 4
    intermediate_layers_indices: tuple[_Layer, ...] | None = (3, 7, 15, 23, 30)
    supported_aspect_ratios: tuple[tuple[_Tiles, ...], ...] | None = _RATIOS
    ignored = NO_EFFECT
    aliases: ClassVar[Mapping[str, str]] = {"num_attention_heads": "attention_heads"}

    def to_config(self) -> MllamaVisionConfig:
        """The tower's configuration.

        Raises:
            ValueError, NotImplementedError: settings that contradict each other, or are not
                supported, named.
        """
        where, depth = "vision_config", self.num_hidden_layers
        heads = self.attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"{where}.hidden_size: expected a multiple of attention_heads={heads}, got "
                f"{self.hidden_size}"
            )
        kept = self.intermediate_layers_indices
        kept = (3, 7, 15, 23, 30) if kept is None else kept
        if not kept or not all(-depth <= index < depth for index in kept):
            raise ValueError(
                f"{where}.intermediate_layers_indices: expected layers in [-{depth}, {depth}), got "
                f"{show(list(kept))}"
            )
        width = self.hidden_size * (1 + len(kept))
        if self.vision_output_dim != width:
            raise ValueError(
                f"{where}.vision_output_dim: expected {width}, hidden_size for the last layer and "
                f"each of intermediate_layers_indices, got {self.vision_output_dim}"
            )
        ratios = self.supported_aspect_ratios
        image_size = square(self.image_size, f"{where}.image_size")
        patch_size = square(self.patch_size, f"{where}.patch_size")
        if patch_size > image_size:
            raise ValueError(
                f"{where}.patch_size: expected at most image_size={image_size}, got {patch_size}"
            )
        return MllamaVisionConfig(
            encoder=EncoderConfig(
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                hidden_act=self.hidden_act,
                layer_norm_eps=self.norm_eps,
                attention_bias=False,
                attention_output_bias=False,
            ),
            num_global_layers=self.num_global_layers,
            image_size=image_size,
            patch_size=patch_size,
            max_num_tiles=self.max_num_tiles,
            num_aspect_ratios=len(_RATIOS if ratios is None else ratios),
            kept_layers=tuple(index % depth for index in kept),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MllamaTextSettings(LlamaSettings):
    """`text_config`."""

    model_type: Literal["mllama_text_model"] = "mllama_text_model"
    vocab_size: Width = 128256
    intermediate_size: Width = 14336
    num_hidden_layers: Count = 40
    num_key_value_heads: Count | None = 8
    max_position_embeddings: Length = 131072
    rope_theta: Theta = 500000.0
    rms_norm_eps: Epsilon = 1e-5
    head_dim: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    cross_attention_layers: tuple[Annotated[int, Between(0, 4095)], ...] | None = None
    eos_token_id: TokenIds | None = 128001
    # Training alone has dropout. transformers never ties the head of a model with pictures.
    ignored = NO_EFFECT | {"dropout", "tie_word_embeddings"}

    def switches(self) -> dict[str, Any]:
        """Layers that attend to pictures, and rows of the embedding for the image token."""
        layers = self.cross_attention_layers
        layers = tuple(range(3, 40, 5)) if layers is None else tuple(sorted(set(layers)))
        if not layers or layers[-1] >= self.num_hidden_layers:
            raise ValueError(
                "text_config.cross_attention_layers: expected some of the layers in "
                f"[0, {self.num_hidden_layers}), got {show(list(layers))}"
            )
        if len(layers) == self.num_hidden_layers:
            raise NotImplementedError(
                "text_config.cross_attention_layers has all layers; supported: some"
            )
        return {"cross_layers": layers, "extra_embeddings": _EXTRA_EMBEDDINGS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MllamaSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["mllama"]
    image_token_index: TokenId = 128256
    ignored = NO_EFFECT | {"tie_word_embeddings"}
    aliases: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MllamaConfig(ModelConfig):
    """An Mllama model: fields of `ModelConfig` and a vision tower."""

    model_type: str = "mllama"
    vision: MllamaVisionConfig
    text: TextConfig

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = MllamaSettings.read(content)
        text = MllamaTextSettings.read(hf.text_config or {}, "text_config")
        config = text.to_config("text_config", tie_word_embeddings=False)
        token = hf.image_token_index
        rows = config.vocab_size + config.extra_embeddings
        if token >= rows:
            raise ValueError(
                f"image_token_index: expected one of the {rows} rows of the embedding, got {token}"
            )
        return cls(
            vision=MllamaVisionSettings.read(hf.vision_config or {}, "vision_config").to_config(),
            text=config,
            image_token_id=token,
            eos_token_ids=hf.eos_token_ids(text),
        )
