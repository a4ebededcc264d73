"""Settings of a Mistral Small 3 model, and of LLaVA with a Pixtral tower."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, ActivationName, Count, TokenId
from models.families.base import ModelConfig
from models.families.llava.config import FeatureLayers, LlavaSettings
from models.families.settings import FamilySettings
from models.layers.activations import Activation
from models.text.registry import read_text_settings
from models.vision.grid_tower import GridConfig
from models.vision.pixtral_settings import PixtralVisionSettings

__all__ = ["PIXTRAL", "Mistral3Config", "Mistral3Settings"]

PIXTRAL = "llava_pixtral"
"""Name of the family of files whose model_type is "llava" and whose tower is Pixtral's."""

# The parts of a file that says nothing of them.
_VISION = {"patch_size": 14}
_TEXT = {
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e9,
    "sliding_window": None,
    "vocab_size": 131072,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistral3Settings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["mistral3"]
    image_token_index: TokenId = 10
    projector_hidden_act: ActivationName = Activation.GELU
    multimodal_projector_bias: bool = False
    vision_feature_layer: FeatureLayers = -1
    spatial_merge_size: Count = 2
    tie_word_embeddings: bool = True
    ignored = NO_EFFECT
    aliases: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistral3Config(ModelConfig):
    """Fields of `ModelConfig`, the vision tower and the projector.

    Attributes:
        vision: the tower.
        norm_and_merge: whether a norm and a layer that merges blocks go before the projector's MLP.
    """

    model_type: str = "mistral3"
    vision: GridConfig
    projector_hidden_act: Activation
    multimodal_projector_bias: bool
    norm_and_merge: bool

    @property
    def block_size(self) -> int:
        """Pixels of the side of a block that becomes one visual token."""
        return self.vision.patch_size * self.vision.merge

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = Mistral3Settings.read(content)
        vision = _VISION if hf.vision_config is None else hf.vision_config
        text = _TEXT if hf.text_config is None else hf.text_config
        return cls._from_parts(hf, vision, text, "mistral", hf.spatial_merge_size)

    @classmethod
    def from_hf_llava(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json of LLaVA with a Pixtral tower; raises as `from_hf`."""
        hf = LlavaSettings.read(content)
        if hf.vision_feature_select_strategy != "full":
            raise NotImplementedError(
                f"vision_feature_select_strategy={hf.vision_feature_select_strategy!r}; supported "
                "with a Pixtral tower, which has no class token: 'full'"
            )
        config = cls._from_parts(hf, hf.vision_config or {}, hf.text_config or {}, "llama", None)
        return dataclasses.replace(config, model_type=PIXTRAL)

    @classmethod
    def _from_parts(
        cls,
        hf: Mistral3Settings | LlavaSettings,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        default_text: str,
        merge: int | None,
    ) -> Self:
        tower = PixtralVisionSettings.read(vision, "vision_config")
        decoder = read_text_settings(text, default=default_text)
        return cls(
            vision=tower.to_config(hf.vision_feature_layer, merge=merge or 1),
            text=hf.decoder(decoder),
            image_token_id=hf.image_token_index,
            projector_hidden_act=hf.projector_hidden_act,
            multimodal_projector_bias=hf.multimodal_projector_bias,
            norm_and_merge=merge is not None,
            eos_token_ids=hf.eos_token_ids(decoder),
        )
