"""Settings by name."""

import difflib
import statistics
from collections.abc import Mapping
from math import pi, sqrt
from types import MappingProxyType

from vkq_jax.config import KVQuantConfig, ScoreCalibration
from vkq_jax.dense import Dense
from vkq_jax.dictionary_codes import DictionaryCodes
from vkq_jax.level_codes import Granularity, LevelCodes
from vkq_jax.quantized import CodeFamily
from vkq_jax.range_rules import Quantile, Shrink
from vkq_jax.sign_codes import SignCodes
from vkq_jax.token_classes import TokenClass

__all__ = ["calibrated_presets", "presets", "resolve"]

# The levels of least squared error for a normal distribution, -+ sqrt(2 / pi), are its 0.2125- and
# 0.7875-quantiles.
_NORMAL_QUANTILE = statistics.NormalDist().cdf(-sqrt(2 / pi))


def _both(codes: CodeFamily) -> KVQuantConfig:
    return KVQuantConfig(key=codes, value=codes)


def _classes(*planes: tuple[float, float]) -> tuple[TokenClass, ...]:
    return tuple(TokenClass(share, bits) for share, bits in planes)


presets: Mapping[str, KVQuantConfig] = MappingProxyType(
    {
        # This project's own: unbiased sign codes.
        "vkq-1bit": _both(SignCodes(gamma=1.0, scale_bits=8)),
        # arXiv 2502.14882v1: group-specific and quantile-based.
        "tc-1bit-plain": _both(DictionaryCodes(_classes((0.25, 2), (0.5, 1), (0.25, 0)))),
        "tc-1bit-ic4": _both(DictionaryCodes(_classes((0.25, 2), (0.45, 1), (0.3, 0)), centres=4)),
        "quantile-1bit": _both(LevelCodes(range_rule=Quantile(_NORMAL_QUANTILE), group_size=64)),
        # arXiv 2502.14882v2, as its code at 1 bit.
        "calibquant-1bit": KVQuantConfig(
            key=LevelCodes(range_rule=Shrink(0.5)),
            value=LevelCodes(range_rule=Shrink(0.3)),
            calibration=ScoreCalibration(tau1=0.0, tau2=3.0),
        ),
        "minmax-1bit": _both(LevelCodes(bits=1)),
        "minmax-2bit": _both(LevelCodes(bits=2)),
        "minmax-4bit": _both(LevelCodes(bits=4)),
        # float32 tables: rounding the levels to bfloat16 would cost more than the codes do.
        "minmax-8bit": _both(LevelCodes(bits=8, table_dtype="float32")),
        # KIVI, arXiv 2402.02750: keys per channel, values per token, groups of 32.
        "kivi-2bit": KVQuantConfig(
            key=LevelCodes(bits=2, group_size=32),
            value=LevelCodes(bits=2, granularity=Granularity.PER_TOKEN, group_size=32),
        ),
        "none": _both(Dense()),
    }
)


_ONE_BIT = _classes((0.1, 3), (0.2, 2), (0.3, 1), (0.4, 0))
_HALF_BIT = _classes((0.05, 3), (0.1, 2), (0.15, 1), (0.7, 0))

calibrated_presets: Mapping[str, KVQuantConfig] = MappingProxyType(
    {
        "vkq-1bit": _both(DictionaryCodes(_ONE_BIT, codebook=256)),
        "vkq-half": _both(DictionaryCodes(_HALF_BIT, codebook=256)),
    }
)
"""What presets stand for once a model is calibrated."""


def resolve(quant: str | KVQuantConfig) -> KVQuantConfig:
    """The settings that a name stands for; settings are returned as they are.

    Raises:
        ValueError: there is no preset of this name, or `quant` is neither name nor settings.
    """
    if isinstance(quant, KVQuantConfig):
        return quant
    if not isinstance(quant, str):
        raise ValueError(f"quant must be the name of a preset or a KVQuantConfig, got {quant!r}")
    if quant not in presets:
        close = difflib.get_close_matches(quant, presets, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown preset {quant!r}, known are {', '.join(presets)}{hint}")
    return presets[quant]
