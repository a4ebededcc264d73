"""Settings of a Pixtral vision tower in config.json."""

import dataclasses
from typing import Any, Literal

from models.checkpoints.hf_fields import NO_EFFECT, ActivationName, Count, Side, Theta, Width
from models.checkpoints.hf_settings import Settings
from models.layers.activations import Activation
from models.vision.encoder import EncoderConfig
from models.vision.grid_settings import axial_theta
from models.vision.grid_tower import GridConfig
from models.vision.settings import WHERE, feature_layers, square
from vkq_jax.messages import show

__all__ = ["PixtralVisionSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixtralVisionSettings(Settings):
    """`vision_config` of Pixtral, arXiv 2410.07073."""

    model_type: Literal["pixtral"] = "pixtral"
    hidden_size: Width = 1024
    intermediate_size: Width = 4096
    num_hidden_layers: Count = 24
    num_attention_heads: Count = 16
    num_channels: Literal[3] = 3
    patch_size: Side | tuple[Side, ...] = 16
    head_dim: Count | None = None
    hidden_act: ActivationName = Activation.GELU
    rope_parameters: dict[str, Any] | None = None
    rope_theta: Theta = 10000.0
    # The tower takes pictures of any size; the processor bounds them.
    ignored = NO_EFFECT | {"image_size", "vocab_size"}

    def to_config(self, chosen: int | tuple[int, ...], *, merge: int) -> GridConfig:
        """The tower that gives features of one layer.

        Args:
            chosen: the family's `vision_feature_layer`; -1 is the last block's output.
            merge: patches of the side of a block that becomes one visual token.

        Raises:
            NotImplementedError: a setting that is not supported, named.
            ValueError: settings that contradict each other, named.
        """
        layer, *others = feature_layers(chosen, self.num_hidden_layers)
        if others:
            raise NotImplementedError(
                f"vision_feature_layer={show(chosen)}; supported with a Pixtral tower: one layer"
            )
        heads = self.num_attention_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(
                f"{WHERE}.hidden_size: expected a multiple of 2 * num_attention_heads={2 * heads}, "
                f"got {self.hidden_size}"
            )
        if self.head_dim not in (None, self.hidden_size // heads):
            raise ValueError(
                f"{WHERE}.head_dim: expected hidden_size / num_attention_heads="
                f"{self.hidden_size // heads}, got {self.head_dim}"
            )
        return GridConfig(
            encoder=EncoderConfig(
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=heads,
                hidden_act=self.hidden_act,
                layer_norm_eps=1e-5,
                rms_norms=True,
                gated_mlp=True,
                attention_bias=False,
                attention_output_bias=False,
                mlp_bias=False,
            ),
            patch_size=square(self.patch_size, f"{WHERE}.patch_size"),
            temporal_patch_size=1,
            merge=merge,
            pre_norm=True,
            rope_theta=axial_theta(self.rope_parameters, self.rope_theta),
            alternating_rope=True,
            feature_layer=layer,
        )
