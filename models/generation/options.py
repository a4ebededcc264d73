"""The arguments of `generate` that wrappers of it pass on."""

import os
from typing import Literal, TypedDict

import jax

from models.sampling import Sampling
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.settings.calibrated import CalibratedCodes
from vkq_jax.settings.layer_settings import AnyQuant
from vkq_jax.settings.score_maps import ScoreMap

__all__ = ["GenerateOptions", "QuantizeAt"]

QuantizeAt = Literal["prompt", "image"]


class GenerateOptions(TypedDict, total=False):
    """The optional arguments of `generate`."""

    quant: AnyQuant | None
    sampling: Sampling
    key: jax.Array | None
    stop_tokens: tuple[int, ...] | None
    quantize_at: QuantizeAt
    cache: AnyCache | None
    cache_length: int | None
    implementation: str | None
    score_map: ScoreMap | None
    tables: CalibratedCodes | str | os.PathLike[str] | None
    text_bits: TextBits
    bucketing: bool
