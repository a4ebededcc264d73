"""Settings of a vision tower over a fixed grid in config.json: fields, ranges, defaults."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal

from models.checkpoints.hf_fields import NO_EFFECT, ActivationName, Count, Epsilon, Side, Width
from models.checkpoints.hf_settings import Settings, read_by_type
from models.layers.activations import Activation
from models.vision.encoder import EncoderConfig
from models.vision.vit import VitConfig
from vkq_jax.messages import show

__all__ = [
    "VISION_SETTINGS",
    "ClipVisionSettings",
    "SiglipVisionSettings",
    "VisionSettings",
    "feature_layers",
    "read_vision_settings",
    "square",
]

WHERE = "vision_config"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSettings(Settings):
    """Fields of `vision_config` that towers share; subclasses are the kinds of towers."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    num_channels: Literal[3] = 3
    image_size: Side | tuple[Side, ...] = 224
    patch_size: Side | tuple[Side, ...] = 16
    hidden_act: ActivationName = Activation.GELU_TANH
    layer_norm_eps: Epsilon = 1e-6
    ignored = NO_EFFECT | {"model_type", "vocab_size"}

    def to_config(
        self,
        chosen: int | tuple[int, ...],
        *,
        keep_class_token: bool = False,
        post_norm: bool = False,
    ) -> VitConfig:
        """The tower that gives features of these layers.

        Args:
            chosen: the family's `vision_feature_layer`; -1 is the last block's output.
            keep_class_token: whether that token is a feature.
            post_norm: whether features pass the tower's final norm: `last_hidden_state` of SigLIP
                is layer -1 with it.

        Raises:
            NotImplementedError: a setting that is not supported, named.
            ValueError: settings that contradict each other, named.
        """
        return VitConfig(
            encoder=self._encoder(),
            feature_layers=feature_layers(chosen, self.num_hidden_layers),
            keep_class_token=keep_class_token,
            post_norm=post_norm,
            **self._sides(),
            **self.switches(),
        )

    def switches(self) -> dict[str, Any]:
        """Fields of `VitConfig` in which towers differ."""
        return {}

    def _encoder(self) -> EncoderConfig:
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"{WHERE}.hidden_size: expected a multiple of num_attention_heads={heads}, "
                f"got {self.hidden_size}"
            )
        return EncoderConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=heads,
            hidden_act=self.hidden_act,
            layer_norm_eps=self.layer_norm_eps,
        )

    def _sides(self) -> dict[str, int]:
        image_size = square(self.image_size, f"{WHERE}.image_size")
        patch_size = square(self.patch_size, f"{WHERE}.patch_size")
        if patch_size > image_size:
            raise ValueError(
                f"{WHERE}.patch_size: expected at most image_size={image_size}, got {patch_size}"
            )
        return {"image_size": image_size, "patch_size": patch_size}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionSettings(VisionSettings):
    """`vision_config` of a CLIP tower."""

    patch_size: Side | tuple[Side, ...] = 32
    hidden_act: ActivationName = Activation.QUICK_GELU
    layer_norm_eps: Epsilon = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipVisionSettings(VisionSettings):
    """`vision_config` of a SigLIP tower."""

    # The pooling head is after all features.
    ignored = VisionSettings.ignored | {"vision_use_head"}

    def switches(self) -> dict[str, Any]:
        """Patches with a bias, no class token, no norm before the first block."""
        return {"class_token": False, "patch_bias": True, "pre_norm": False}


VISION_SETTINGS: Mapping[str, type[VisionSettings]] = {
    "clip_vision_model": ClipVisionSettings,
    "siglip_vision_model": SiglipVisionSettings,
}
"""By model_type."""


def read_vision_settings(
    content: Mapping[str, Any], supported: Collection[str] = VISION_SETTINGS, *, default: str
) -> VisionSettings:
    """The fields of a vision tower.

    Args:
        content: the object `vision_config`.
        supported: the towers that the family takes, by model_type.
        default: the model_type of an object that states none.

    Raises:
        NotImplementedError, ValueError: see `models.checkpoints.hf_settings.read_by_type`.
    """
    return read_by_type(VISION_SETTINGS, content, WHERE, supported=supported, default=default)


def feature_layers(chosen: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """After how many of `depth` blocks features are taken, from `vision_feature_layer`.

    Raises:
        NotImplementedError: features before the first block only.
        ValueError: a number outside the tower.
    """
    numbers = (chosen,) if isinstance(chosen, int) else chosen
    resolved = tuple(index if index >= 0 else depth + 1 + index for index in numbers)
    if not resolved or min(resolved) < 0 or max(resolved) > depth:
        raise ValueError(
            f"vision_feature_layer={show(chosen)} points outside the {depth} vision layers"
        )
    if max(resolved) == 0:
        raise NotImplementedError(f"vision_feature_layer={show(chosen)} uses no vision layer")
    return resolved


def square(size: int | tuple[int, ...], setting: str) -> int:
    """The side of a square given as one number or two equal ones."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1 or (isinstance(size, tuple) and len(size) != 2):
        raise NotImplementedError(f"{setting}={show(size)}; this port supports squares")
    return sides.pop()
