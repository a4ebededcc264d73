"""Settings of a PaddleOCR-VL model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

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
from models.families.qwen_vl.config import (
    QwenVLConfig,
    QwenVLSettings,
    check_part,
    qwen_text_settings,
)
from models.layers.activations import Activation
from models.vision.encoder import EncoderConfig
from models.vision.grid_settings import axial_theta
from models.vision.grid_tower import GridConfig
from models.vision.settings import square

__all__ = ["PaddleOcrVLConfig", "PaddleOcrVLSettings", "PaddleOcrVisionSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddleOcrVisionSettings(Settings):
    """`vision_config`: SigLIP with a stretched table of positions and 2-D RoPE."""

    hidden_size: Width = 1152
    intermediate_size: Width = 4304
    num_hidden_layers: Count = 27
    num_attention_heads: Count = 16
    num_channels: Literal[3] = 3
    image_size: Side = 384
    patch_size: Side | tuple[Side, ...] = 14
    spatial_merge_size: Count = 2
    hidden_act: ActivationName = Activation.GELU_TANH
    layer_norm_eps: Epsilon = 1e-6
    rope_parameters: dict[str, Any] | None = None
    rope_theta: Theta = 10000.0
    # Files of the Hub also have what the tower's ancestors did with clips.
    ignored = NO_EFFECT | {"model_type", "temporal_patch_size", "tokens_per_second"}

    def to_config(self) -> GridConfig:
        """The tower.

        Raises:
            NotImplementedError: a setting that is not supported, named.
            ValueError: settings that contradict each other, named.
        """
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                "vision_config.hidden_size: expected a multiple of 4 * num_attention_heads="
                f"{4 * self.num_attention_heads}, got {self.hidden_size}"
            )
        patch = square(self.patch_size, "vision_config.patch_size")
        return GridConfig(
            encoder=EncoderConfig(
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                hidden_act=self.hidden_act,
                layer_norm_eps=self.layer_norm_eps,
            ),
            patch_size=patch,
            temporal_patch_size=1,
            merge=self.spatial_merge_size,
            patch_bias=True,
            post_norm=True,
            rope_theta=axial_theta(self.rope_parameters, self.rope_theta),
            table_side=max(self.image_size // patch, 1),
            table_edges=True,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddleOcrVLSettings(QwenVLSettings):
    """The whole config.json."""

    model_type: Literal["paddleocr_vl"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_token_id: TokenId = 100295
    video_token_id: TokenId = 100296
    vision_start_token_id: TokenId = 101305
    vision_end_token_id: TokenId = 101306
    tie_word_embeddings: bool = True
    text_beside = frozenset({"paddleocr_vl"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddleOcrVLConfig(QwenVLConfig):
    """Fields of `QwenVLConfig`; pictures alone."""

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json; text settings may lie beside all others.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = PaddleOcrVLSettings.read(content)
        given = hf.vision_config or {}
        check_part("vision_config", given, hf.model_type, f"{hf.model_type}_vision")
        # transformers keeps this one field of a flat file from the decoder.
        beside = {name: x for name, x in content.items() if name != "tie_word_embeddings"}
        text, where = qwen_text_settings(hf, beside)
        return cls(
            model_type=hf.model_type,
            vision=PaddleOcrVisionSettings.read(given, "vision_config").to_config(),
            text=hf.decoder(text, where),
            image_token_id=hf.image_token_id,
            video_token_id=hf.video_token_id,
            vision_start_token_id=hf.vision_start_token_id,
            vision_end_token_id=hf.vision_end_token_id,
            eos_token_ids=hf.eos_token_ids(text),
        )
