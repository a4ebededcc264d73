"""Fields of a whole config.json that families share."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from models.checkpoints.hf_fields import TokenIds, token_ids
from models.checkpoints.hf_settings import Settings
from models.text.config import TextConfig
from models.text.settings import TextSettings

__all__ = ["FamilySettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilySettings(Settings):
    """The whole file; its towers are read by their own settings.

    Attributes:
        decoder_ties: whether the text decoder's own `tie_word_embeddings` counts, too.
        text_beside: model types whose files may have the text decoder's fields beside all others.
    """

    vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    quantization_config: None = None
    eos_token_id: TokenIds | None = None
    decoder_ties: ClassVar[bool] = True
    text_beside: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def read(cls, content: Mapping[str, Any], where: str = "") -> Self:
        """See `Settings.read`; a decoder whose fields would be left alone is refused, too."""
        # Without this check the decoder would be transformers' default, whatever the file says.
        beside = content.get("text_config") is None and "num_hidden_layers" in content
        if beside and content.get("model_type") not in cls.text_beside:
            raise ValueError(
                "text_config is missing: expected an object with the text decoder's settings, "
                "got num_hidden_layers and others beside it"
            )
        return super().read(content, where)

    def decoder(self, text: TextSettings, where: str = "text_config") -> TextConfig:
        """The text decoder; its head is tied where the file, or what `decoder_ties` adds, says so.

        Raises what `TextSettings.to_config` does.
        """
        own = self.decoder_ties and text.tie_word_embeddings
        tied = self.tie_word_embeddings or own
        return text.to_config(where, tie_word_embeddings=tied)

    def eos_token_ids(self, text: TextSettings) -> tuple[int, ...]:
        """Tokens that end an answer: the file's own, or else the text decoder's."""
        return token_ids(text.eos_token_id if self.eos_token_id is None else self.eos_token_id)
