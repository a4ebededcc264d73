"""Fields of a whole config.json that families share."""

import dataclasses
from typing import Any, ClassVar

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
    """

    vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    quantization_config: None = None
    eos_token_id: TokenIds | None = None
    decoder_ties: ClassVar[bool] = True

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
