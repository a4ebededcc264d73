"""Settings of an InternVL model."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import (
    NO_EFFECT,
    ActivationName,
    Count,
    Epsilon,
    Side,
    TokenId,
    Width,
)
from models.checkpoints.hf_settings import Between
from models.families.fixed_grid import FixedGridConfig
from models.families.settings import FamilySettings
from models.layers.activations import Activation
from models.text.registry import read_text_settings
from models.vision.encoder import EncoderConfig
from models.vision.settings import VisionSettings

__all__ = ["InternVLConfig", "InternVLSettings", "InternVisionSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternVisionSettings(VisionSettings):
    """`vision_config` of an InternViT tower."""

    model_type: Literal["internvl_vision"] = "internvl_vision"
    hidden_size: Width = 1024
    intermediate_size: Width = 4096
    num_hidden_layers: Count = 24
    num_attention_heads: Count = 16
    image_size: Side | tuple[Side, ...] = (448, 448)
    patch_size: Side | tuple[Side, ...] = (14, 14)
    hidden_act: ActivationName = Activation.GELU
    layer_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    use_qk_norm: bool = False
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    use_mean_pooling: bool = True
    use_absolute_position_embeddings: Literal[True] = True
    # Training alone has dropout, a token for hidden patches, and a start of lambda_1 and lambda_2.
    ignored = NO_EFFECT | {
        "hidden_dropout_prob",
        "projection_dropout",
        "use_mask_token",
        "layer_scale_init_value",
    }

    def switches(self) -> dict[str, Any]:
        """Patches have a bias; there is no norm before the first block."""
        return {"pre_norm": False, "patch_bias": True}

    def _encoder(self) -> EncoderConfig:
        return dataclasses.replace(
            super()._encoder(),
            rms_norms=self.norm_type == "rms_norm",
            attention_bias=self.attention_bias,
            query_key_norm=self.use_qk_norm,
            layer_scale=True,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternVLSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["internvl"]
    image_token_id: TokenId = 151667
    downsample_ratio: Annotated[float, Between(1e-3, 1)] = 0.5
    projector_hidden_act: ActivationName = Activation.GELU
    vision_feature_layer: Annotated[int, Between(-4097, 4096)] = -1
    vision_feature_select_strategy: Literal["default"] = "default"
    tie_word_embeddings: bool = True
    decoder_ties: ClassVar[bool] = False
    # How long a tile is follows from the vision tower.
    ignored = NO_EFFECT | {"image_seq_length"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternVLConfig(FixedGridConfig):
    """An InternVL model: fields of `FixedGridConfig` and its projector; a tile is an image.

    Attributes:
        merge: features of a side of the square that becomes one visual token.
    """

    model_type: str = "internvl"
    merge: int
    projector_hidden_act: Activation
    settings: ClassVar[type[InternVLSettings]] = InternVLSettings
    tower: ClassVar[type[InternVisionSettings]] = InternVisionSettings
    default_text: ClassVar[str] = "qwen2"

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one tile."""
        return self.vision.num_patches // self.merge**2

    @staticmethod
    def ends_tower(layer: int, depth: int) -> bool:
        """Whether a layer is what the tower gives at its end; others are the outputs of blocks."""
        return layer == -1

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = cls.settings.read(content)
        tower = cls.tower.read(hf.vision_config or {}, "vision_config")
        vision = tower.to_config(
            hf.vision_feature_layer,
            post_norm=not tower.use_mean_pooling
            and cls.ends_tower(hf.vision_feature_layer, tower.num_hidden_layers),
        )
        merge = round(1 / hf.downsample_ratio)
        if merge * hf.downsample_ratio != 1 or vision.side % merge:
            raise NotImplementedError(
                f"downsample_ratio={hf.downsample_ratio}; supported: 1 divided by a divisor of the "
                f"{vision.side} patches of a tile's side"
            )
        text = read_text_settings(hf.text_config or {}, default=cls.default_text)
        return cls(
            vision=vision,
            text=hf.decoder(text),
            image_token_id=hf.image_token_id,
            merge=merge,
            projector_hidden_act=hf.projector_hidden_act,
            eos_token_ids=hf.eos_token_ids(text),
        )
