"""Settings of a PaliGemma model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, TokenId, Width
from models.families.fixed_grid import FixedGridConfig
from models.families.settings import FamilySettings
from models.text.gemma_settings import Gemma2Settings
from models.text.registry import read_text_settings
from models.vision.settings import read_vision_settings

__all__ = ["PaliGemmaConfig", "PaliGemmaSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaliGemmaSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["paligemma"]
    image_token_index: TokenId = 256000
    projection_dim: Width = 2048
    tie_word_embeddings: bool = True
    # The text tower's own fields are looked at.
    ignored = NO_EFFECT | {"hidden_size", "vocab_size", "ignore_index"}
    aliases: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}


# The towers of a file that says nothing of them.
_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4096,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
_TEXT = {
    "vocab_size": 257152,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig(FixedGridConfig):
    """A PaliGemma model of version 1 (Gemma) or 2 (Gemma 2)."""

    model_type: str = "paligemma"

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = PaliGemmaSettings.read(content)
        tower = read_vision_settings(
            _VISION if hf.vision_config is None else hf.vision_config,
            ("siglip_vision_model",),
            default="siglip_vision_model",
        )
        given = dict(_TEXT if hf.text_config is None else hf.text_config)
        # The processor's token_type_ids decide which tokens see each other; this field does not.
        given.pop("use_bidirectional_attention", None)
        text = read_text_settings(given, supported=("gemma", "gemma2"), default="gemma")
        if hf.projection_dim != text.hidden_size:
            raise ValueError(
                f"projection_dim: expected text_config.hidden_size={text.hidden_size}, "
                f"got {hf.projection_dim}"
            )
        decoder = hf.decoder(text)
        if decoder.rope.depends_on_length:
            # Its positions count from 1 in transformers, and so does the length of a call.
            raise NotImplementedError(
                f"text_config.rope_parameters.rope_type={decoder.rope.kind.value!r}; supported for "
                "this model_type: those whose frequencies do not depend on a prompt's length"
            )
        cap = text.final_logit_softcapping if isinstance(text, Gemma2Settings) else None
        return cls(
            vision=tower.to_config(-1, post_norm=True),
            text=dataclasses.replace(
                decoder,
                final_logit_softcapping=cap,
                groups_cross_window=True,
            ),
            image_token_id=hf.image_token_index,
            eos_token_ids=hf.eos_token_ids(text),
        )
