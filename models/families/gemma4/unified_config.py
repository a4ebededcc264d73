"""Settings of Gemma 4 12B, which has no vision tower."""

import dataclasses
from typing import Any, ClassVar, Literal

from models.checkpoints.hf_fields import NO_EFFECT, Count, Epsilon, Length, Side, Width
from models.checkpoints.hf_settings import Settings
from models.families.gemma4.config import (
    Gemma4Config,
    Gemma4Settings,
    Gemma4TextSettings,
)

__all__ = [
    "Gemma4UnifiedConfig",
    "Gemma4UnifiedSettings",
    "Gemma4UnifiedTextSettings",
    "Gemma4UnifiedVisionSettings",
    "PixelSquares",
]


@dataclasses.dataclass(frozen=True)
class PixelSquares:
    """Squares of pixels that become visual tokens one by one.

    Attributes:
        patch_size: pixels on a side of what the processor calls a patch.
        pooling: patches on a side of a square.
        width: channels of an embedded square.
        axis_table: rows of each of two tables of positions, by column and by row.
        rms_norm_eps: of the last norm.
    """

    patch_size: int
    pooling: int
    width: int
    axis_table: int
    rms_norm_eps: float

    merge = 1
    """The grid of the decoder's tokens is that of the squares."""

    @property
    def patch_width(self) -> int:
        """Numbers of one square: rows, columns, 3 colours."""
        return 3 * (self.patch_size * self.pooling) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4UnifiedVisionSettings(Settings):
    """`vision_config`."""

    model_type: Literal["gemma4_unified_vision"] = "gemma4_unified_vision"
    patch_size: Side = 16
    pooling_kernel_size: Count = 3
    mm_embed_dim: Width = 3840
    mm_posemb_size: Width = 1120
    rms_norm_eps: Epsilon = 1e-6
    output_proj_dims: Width = 3840
    standardize: ClassVar[bool] = False  # there are no features of a tower
    # The first is the product of the two sizes, the second is the processor's `max_soft_tokens`.
    ignored = NO_EFFECT | {"model_patch_size", "num_soft_tokens"}

    def to_config(self) -> PixelSquares:
        """The squares; raises ValueError for widths that contradict each other."""
        if self.output_proj_dims != self.mm_embed_dim:
            raise ValueError(
                f"vision_config.output_proj_dims: expected mm_embed_dim={self.mm_embed_dim}, got "
                f"{self.output_proj_dims}"
            )
        return PixelSquares(
            patch_size=self.patch_size,
            pooling=self.pooling_kernel_size,
            width=self.mm_embed_dim,
            axis_table=self.mm_posemb_size,
            rms_norm_eps=self.rms_norm_eps,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4UnifiedTextSettings(Gemma4TextSettings):
    """Gemma 4's decoder without inputs of layers and without experts."""

    max_position_embeddings: Length = 262144
    sliding_window: Length | None = 1024
    use_bidirectional_attention: Literal["vision"] | None = "vision"
    hidden_size_per_layer_input: Literal[0] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    enable_moe_block: Literal[False] = False  # pyright: ignore[reportIncompatibleVariableOverride]

    def switches(self) -> dict[str, Any]:
        """Switches of Gemma 4's blocks; tokens of a picture see each other in all layers.

        transformers masks so in `forward` and with its own caches of growing length; with static
        ones it masks as in other Gemma 4 models.
        """
        return super().switches() | {"groups_in_windows": False, "groups_cross_window": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4UnifiedSettings(Gemma4Settings):
    """The whole config.json."""

    model_type: Literal["gemma4_unified"]  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma4UnifiedConfig(Gemma4Config):
    """Fields of `Gemma4Config`, and squares in place of a tower."""

    vision: PixelSquares  # pyright: ignore[reportIncompatibleVariableOverride]

    settings = Gemma4UnifiedSettings
    text_settings = Gemma4UnifiedTextSettings
    vision_settings = Gemma4UnifiedVisionSettings

    @property
    def pooling(self) -> int:
        """See `Gemma4Config.pooling`."""
        return self.vision.pooling
