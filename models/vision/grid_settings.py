"""Settings of Qwen-VL's vision towers in config.json, and what all towers over a grid share."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from models.checkpoints.hf_fields import (
    NO_EFFECT,
    ActivationName,
    Count,
    Side,
    Theta,
    Width,
)
from models.checkpoints.hf_settings import Between, Settings
from models.layers.activations import Activation
from models.vision.encoder import EncoderConfig
from models.vision.grid_tower import GridConfig
from models.vision.settings import WHERE
from vkq_jax.messages import show, some

__all__ = [
    "GRID_SETTINGS",
    "GridVisionSettings",
    "Qwen2VisionSettings",
    "Qwen3VisionSettings",
    "Qwen25VisionSettings",
    "Qwen35VisionSettings",
    "SizedVisionSettings",
    "axial_theta",
]

Layers = tuple[Annotated[int, Between(0, 2**12)], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RopeSettings(Settings):
    """The object `rope_parameters`."""

    # transformers takes the plain type for the one that these towers have.
    rope_type: Literal["axial", "default"] = "axial"
    rope_theta: Theta
    ignored = frozenset({"type"})


def axial_theta(given: dict[str, Any] | None, default: float) -> float:
    """The base of wavelengths that `rope_parameters` states, or else the tower's `rope_theta`.

    Raises:
        NotImplementedError: a setting that is not supported, named.
        ValueError: a field of a wrong type or out of range, named.
    """
    given, where = given or {}, f"{WHERE}.rope_parameters"
    if unread := _RopeSettings.unread(given):
        raise NotImplementedError(f"{where} has {some(unread)}, which is not supported")
    return _RopeSettings.read({"rope_theta": default} | given, where).rope_theta


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridVisionSettings(Settings):
    """Fields that all of these towers have."""

    depth: Count = 32
    hidden_size: Width = 3584
    hidden_act: ActivationName = Activation.SILU
    num_heads: Count = 16
    in_channels: Literal[3] = 3
    patch_size: Side = 14
    spatial_merge_size: Count = 2
    temporal_patch_size: Count = 2
    rope_parameters: dict[str, Any] | None = None
    rope_theta: Theta = 10000.0
    ignored = NO_EFFECT | {"model_type"}
    aliases: ClassVar[Mapping[str, str]] = {
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "depth",
    }

    @property
    def width(self) -> int:
        """Channels of a patch."""
        return self.hidden_size

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        raise NotImplementedError

    @property
    def output_width(self) -> int:
        """Channels of a visual token."""
        raise NotImplementedError

    def to_config(self) -> GridConfig:
        """The tower.

        Raises:
            NotImplementedError: a setting that is not supported, named.
            ValueError: settings that contradict each other, named.
        """
        # Each half of a head's pairs is rotated by one axis.
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"{WHERE}: expected a width that is a multiple of 4 * num_heads="
                f"{4 * self.num_heads}, got {self.width}"
            )
        return GridConfig(
            encoder=EncoderConfig(
                hidden_size=self.width,
                intermediate_size=self.mlp_width,
                num_hidden_layers=self.depth,
                num_attention_heads=self.num_heads,
                hidden_act=self.hidden_act,
                **{"layer_norm_eps": 1e-6, **self.encoder_switches()},
            ),
            patch_size=self.patch_size,
            temporal_patch_size=self.temporal_patch_size,
            merge=self.spatial_merge_size,
            rope_theta=axial_theta(self.rope_parameters, self.rope_theta),
            **self.switches(),
        )

    def encoder_switches(self) -> dict[str, Any]:
        """Fields of `EncoderConfig` in which towers differ."""
        return {}

    def switches(self) -> dict[str, Any]:
        """Fields of `GridConfig` in which towers differ."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2VisionSettings(GridVisionSettings):
    """`vision_config` of Qwen2-VL, whose `hidden_size` is that of the text decoder."""

    embed_dim: Width = 1280
    hidden_act: ActivationName = Activation.QUICK_GELU
    mlp_ratio: Annotated[int, Between(1, 64)] = 4

    @property
    def width(self) -> int:
        """Channels of a patch."""
        return self.embed_dim

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        return self.embed_dim * self.mlp_ratio

    @property
    def output_width(self) -> int:
        """Channels of a visual token."""
        return self.hidden_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizedVisionSettings(GridVisionSettings):
    """Fields of towers that state the widths of their MLPs and of visual tokens."""

    intermediate_size: Width
    out_hidden_size: Width = 3584

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        return self.intermediate_size

    @property
    def output_width(self) -> int:
        """Channels of a visual token."""
        return self.out_hidden_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen25VisionSettings(SizedVisionSettings):
    """`vision_config` of Qwen2.5-VL: windows in all but a few layers."""

    intermediate_size: Width = 3420
    window_size: Side = 112
    fullatt_block_indexes: Layers = (7, 15, 23, 31)
    tokens_per_second: Count = 4

    def encoder_switches(self) -> dict[str, Any]:
        """Blocks are those of the text decoder, with biases."""
        return {"rms_norms": True, "gated_mlp": True}

    def switches(self) -> dict[str, Any]:
        """Windows hold whole blocks, as many as fit."""
        blocks = self.window_size // self.spatial_merge_size // self.patch_size
        if blocks < 1:
            raise ValueError(
                f"{WHERE}.window_size: expected at least spatial_merge_size * patch_size="
                f"{self.spatial_merge_size * self.patch_size} pixels, got {self.window_size}"
            )
        return {
            "window": blocks * self.spatial_merge_size,
            "full_layers": tuple(sorted(set(self.fullatt_block_indexes))),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VisionSettings(SizedVisionSettings):
    """`vision_config` of Qwen3-VL: a table of positions, features of several layers (deepstack)."""

    depth: Count = 27
    hidden_size: Width = 1152
    hidden_act: ActivationName = Activation.GELU_TANH
    intermediate_size: Width = 4304
    patch_size: Side = 16
    num_position_embeddings: Width = 2304
    deepstack_visual_indexes: Layers = (8, 16, 24)

    def switches(self) -> dict[str, Any]:
        """Deepstack layers have to be some of the tower's, in its order; the table is a square."""
        layers, side = self.deepstack_visual_indexes, math.isqrt(self.num_position_embeddings)
        if list(layers) != sorted(set(layers)) or any(layer >= self.depth for layer in layers):
            raise ValueError(
                f"{WHERE}.deepstack_visual_indexes: expected increasing numbers below "
                f"depth={self.depth}, got {show(list(layers))}"
            )
        if side**2 != self.num_position_embeddings:
            raise ValueError(
                f"{WHERE}.num_position_embeddings: expected a square number, "
                f"got {self.num_position_embeddings}"
            )
        return {"patch_bias": True, "table_side": side, "deepstack_layers": layers}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen35VisionSettings(Qwen3VisionSettings):
    """`vision_config` of Qwen3.5: Qwen3-VL's without deepstack."""

    deepstack_visual_indexes: Layers = ()


GRID_SETTINGS: Mapping[str, type[GridVisionSettings]] = {
    "qwen2_vl": Qwen2VisionSettings,
    "qwen2_5_vl": Qwen25VisionSettings,
    "qwen3_vl": Qwen3VisionSettings,
    "qwen3_vl_moe": Qwen3VisionSettings,
    "qwen3_5": Qwen35VisionSettings,
    "qwen3_5_moe": Qwen35VisionSettings,
}
"""By the model_type of the whole model."""
