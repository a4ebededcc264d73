"""Settings of a Gemma 4 model with pictures."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import (
    NO_EFFECT,
    ActivationName,
    Count,
    Epsilon,
    Side,
    Theta,
    TokenId,
    Width,
)
from models.checkpoints.hf_settings import Settings
from models.families.base import ModelConfig
from models.families.settings import FamilySettings
from models.layers.activations import Activation
from models.text.gemma4_settings import Gemma4TextSettings
from models.vision.encoder import EncoderConfig
from models.vision.grid_settings import axial_theta
from models.vision.grid_tower import GridConfig

__all__ = [
    "Gemma4Config",
    "Gemma4Settings",
    "Gemma4TextSettings",
    "Gemma4VisionSettings",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4VisionSettings(Settings):
    """`vision_config`."""

    model_type: Literal["gemma4_vision"] = "gemma4_vision"
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Count = 16
    num_attention_heads: Count = 12
    num_key_value_heads: Count = 12
    head_dim: Count = 64
    hidden_activation: ActivationName = Activation.GELU_TANH
    rms_norm_eps: Epsilon = 1e-6
    rope_parameters: dict[str, Any] | None = None
    rope_theta: Theta = 100.0
    pooling_kernel_size: Count = 3
    patch_size: Side = 16
    position_embedding_size: Width = 10240
    use_clipped_linears: bool = False
    standardize: bool = False
    # transformers gives the tower's projections no biases, whatever the file says.
    ignored = NO_EFFECT | {"attention_bias", "max_position_embeddings"}

    def to_config(self) -> GridConfig:
        """The tower.

        Raises:
            NotImplementedError: a setting that is not supported, named.
            ValueError: settings that contradict each other, named.
        """
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads or self.head_dim % 4:
            raise ValueError(
                "vision_config: expected num_key_value_heads that divides num_attention_heads="
                f"{heads}, and head_dim a multiple of 4; got {kv_heads} and {self.head_dim}"
            )
        return GridConfig(
            encoder=EncoderConfig(
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                head_dim=self.head_dim,
                hidden_act=self.hidden_activation,
                layer_norm_eps=self.rms_norm_eps,
                rms_norms=True,
                wide_norms=True,
                sandwich_norms=True,
                head_norms=True,
                gated_mlp=True,
                attention_bias=False,
                attention_output_bias=False,
                mlp_bias=False,
                axis_halves=True,
                clipped_linears=self.use_clipped_linears,
            ),
            patch_size=self.patch_size,
            temporal_patch_size=1,
            merge=self.pooling_kernel_size,
            axis_table=self.position_embedding_size,
            rope_theta=axial_theta(self.rope_parameters, self.rope_theta),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4Settings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["gemma4"]
    boi_token_id: TokenId = 255999
    eoi_token_id: TokenId = 258882
    image_token_id: TokenId = 258880
    video_token_id: TokenId | None = 258884
    audio_token_id: TokenId | None = 258881
    tie_word_embeddings: bool = True
    # Speech is refused where it is given: tokens or arrays of it.
    ignored = NO_EFFECT | {"audio_config", "boa_token_id", "eoa_token_index"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4Config(ModelConfig):
    """A Gemma 4 model.

    Attributes:
        vision: the tower. standardize: features are shifted and scaled by stored numbers.
        begin_image_id, end_image_id: tokens around a picture's own.
        pictures_see_themselves: tokens of a picture see each other, in layers with a window.
        audio_token_id: token of speech, which this port does not take.
        pad_token_id: token whose embedding the decoder reads for those of pictures and speech.
    """

    vision: GridConfig
    standardize: bool
    begin_image_id: int
    end_image_id: int
    pictures_see_themselves: bool
    audio_token_id: int | None
    pad_token_id: int

    settings: ClassVar[type[Gemma4Settings]] = Gemma4Settings
    text_settings: ClassVar[type[Gemma4TextSettings]] = Gemma4TextSettings
    vision_settings: ClassVar[type[Any]] = Gemma4VisionSettings

    @property
    def pooling(self) -> int:
        """The processor's patches on a side of the square that becomes one visual token."""
        return self.vision.merge

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = cls.settings.read(content)
        if hf.vision_config is None:
            raise NotImplementedError("vision_config=null; supported: models that take pictures")
        vision = cls.vision_settings.read(hf.vision_config, "vision_config")
        text = cls.text_settings.read(hf.text_config or {}, "text_config")
        return cls(
            model_type=hf.model_type,
            vision=vision.to_config(),
            standardize=vision.standardize,
            text=hf.decoder(text),
            begin_image_id=hf.boi_token_id,
            end_image_id=hf.eoi_token_id,
            pictures_see_themselves=text.use_bidirectional_attention is not None,
            audio_token_id=hf.audio_token_id,
            pad_token_id=text.pad_token_id or 0,
            image_token_id=hf.image_token_id,
            video_token_id=hf.video_token_id,
            eos_token_ids=hf.eos_token_ids(text),
        )
