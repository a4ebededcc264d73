"""What config.json says of a Granite decoder."""

import dataclasses
from typing import Any

from models.checkpoints.hf_fields import Factor
from models.text.settings import LlamaSettings

__all__ = ["GraniteSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteSettings(LlamaSettings):
    """A decoder of LLaMA's kind with multipliers."""

    embedding_multiplier: Factor = 1.0
    residual_multiplier: Factor = 1.0
    attention_multiplier: Factor = 1.0
    # transformers' models of pictures and text do not divide logits by it.
    ignored = LlamaSettings.ignored | {"logits_scaling"}

    def switches(self) -> dict[str, Any]:
        """The multipliers; embeddings of pictures are scaled as those of text are."""
        return {
            "embedding_multiplier": self.embedding_multiplier,
            "feature_multiplier": self.embedding_multiplier,
            "residual_multiplier": self.residual_multiplier,
            "attention_multiplier": self.attention_multiplier,
        }
