"""Settings of Ministral 3's text decoder in config.json."""

import dataclasses
from typing import Annotated, Any, Literal

from models.checkpoints.hf_fields import Count, Epsilon, Length, Width
from models.checkpoints.hf_rope import given_rope, rope_of
from models.checkpoints.hf_settings import Between, Settings
from models.layers.rope_config import RopeConfig
from models.text.settings import TextSettings

__all__ = ["Ministral3Settings"]

# RoPE of a file that does not state it.
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _QueryScale(Settings):
    """The length of queries, from the same object."""

    llama_4_scaling_beta: Annotated[float, Between(0, 1e3)]
    # Fields of the tower, which transformers writes here, too.
    max_position_embeddings: Length | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ministral3Settings(TextSettings):
    """Mistral's decoder with queries that become longer at later positions."""

    vocab_size: Width = 131072
    num_hidden_layers: Count = 34
    head_dim: Count | None = 128
    max_position_embeddings: Length = 262144
    original_max_position_embeddings: None = None
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Length | None = None
    layer_types: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    def switches(self) -> dict[str, Any]:
        """The growth of queries."""
        given, where = self._rope("text_config")
        scale = _QueryScale.read(given, where)
        return {"llama_4_scaling_beta": scale.llama_4_scaling_beta}

    def ropes(self, head_dim: int, where: str) -> tuple[RopeConfig, None]:
        """See `TextSettings.ropes`."""
        given, where = self._rope(where)
        plain = {name: given[name] for name in _QueryScale.unread(given)}
        return rope_of(plain, self, head_dim, where), None

    def _rope(self, where: str) -> tuple[dict[str, Any], str]:
        given, where = given_rope(self, where)
        return given or _ROPE, where
