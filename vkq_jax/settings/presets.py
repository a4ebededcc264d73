"""Settings by name."""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from vkq_jax.bits.packing import TERNARY
from vkq_jax.codes.dense import Dense
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.level_codes import Granularity, LevelCodes
from vkq_jax.codes.mixed_codes import MixedCodes
from vkq_jax.codes.quantized import Quantizer
from vkq_jax.codes.range_rules import MSE, MeanMagnitude, Quantile, Shrink
from vkq_jax.codes.sign_codes import SignCodes
from vkq_jax.codes.token_classes import TokenClass
from vkq_jax.messages import shorten, show
from vkq_jax.settings.config import KVQuantConfig, ScoreCalibration

__all__ = ["calibrated_presets", "presets", "register_preset", "resolve"]


def _both(codes: Quantizer) -> KVQuantConfig:
    return KVQuantConfig(key=codes, value=codes)


def _hadamard(*classes: tuple[int | float, int | float], **settings: Any) -> DictionaryCodes:
    return DictionaryCodes(tuple(TokenClass(*c) for c in classes), **settings)


def _image_alone(
    *classes: tuple[int | float, int | float], scale: Literal["unbiased", "between"] = "between"
) -> KVQuantConfig:
    """Classes of tokens around centres of the image's own, keys in units of its channels.

    Keys of pretrained text models have channels much larger than others, values have not; and their
    tokens that get most attention have less energy than others.

    Args:
        scale: of keys.
    """
    return KVQuantConfig(
        key=_hadamard(*classes, order="attention", centres=3, smoothing=0.5, scale=scale),
        value=_hadamard(*classes, order="attention", centres=3),
    )


def _turboquant(bits: int | float) -> KVQuantConfig:
    """TurboQuant (arXiv 2504.19874): rotated tokens, in units of their norm, on a fixed grid.

    The grid is the uniform one of least squared error for a normal distribution (the paper's
    Lloyd-Max levels have 1 % less at 2 bits, 8 % less at 3); half a bit is one more bit for half of
    the rotated channels, where the paper chooses channels by their outliers.
    """
    return _both(_hadamard((1.0, bits), centres=0, scale="norm"))


class _Presets(dict[str, KVQuantConfig]):
    """Settings by name; the error about a name that is none has those that are."""

    def __missing__(self, name: object) -> KVQuantConfig:
        raise KeyError(_unknown(name))

    def __repr__(self) -> str:
        return f"presets: {', '.join(self)}"


_PRESETS = _Presets()
_PRESETS |= {
    # This project's own, where nothing is calibrated: all that is in units of, or around something,
    # takes that from the image.
    "vkq-1bit": _image_alone((0.24, 2), (0.5, 1), (0.26, 0)),
    "vkq-half": _image_alone((0.1, 2), (0.2, 1), (0.7, 0), scale="unbiased"),
    "vkq-2bit": _image_alone((0.23, 3), (0.45, 2), (0.32, 1)),
    # One bit of every channel: what the fused kernel multiplies as it is stored.
    "signs-1bit": _both(SignCodes(gamma=1.0, scale_bits=8)),
    # arXiv 2502.14882v1, group-specific and quantile-based, with the settings that do least to
    # the embedded model within 1.5 bits, by `python -m vkq_apps.evals.quantile_search`: a group
    # is a token of a head.
    "quantile-1bit": KVQuantConfig(
        key=LevelCodes(
            range_rule=Quantile(0.1), granularity=Granularity.PER_TOKEN, rotation="hadamard"
        ),
        value=LevelCodes(range_rule=Quantile(0.1), granularity=Granularity.PER_TOKEN),
    ),
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
    # VidKV, arXiv 2503.16257: the half of a key's channels with the wider range in 2 bits, the
    # other in 1; values in three levels. The paper takes the Fourier transform of the 1-bit
    # channels, which would have to be undone before the product; here their levels are those of
    # least squared error.
    "vidkv-1.5bit": KVQuantConfig(
        key=MixedCodes(wide=LevelCodes(bits=2), narrow=LevelCodes(range_rule=MSE())),
        value=LevelCodes(bits=TERNARY, range_rule=MeanMagnitude()),
    ),
    "turboquant-2bit": _turboquant(2),
    "turboquant-2.5bit": _turboquant(2.5),
    "turboquant-3bit": _turboquant(3),
    # OSCAR, arXiv 2605.17757, where nothing is calibrated: the Hadamard rotation alone.
    "oscar-2bit": _both(_hadamard((1.0, 2), scale="norm")),
    "none": _both(Dense()),
}
presets: Mapping[str, KVQuantConfig] = MappingProxyType(_PRESETS)
"""Settings by name; `register_preset` adds to them."""


def _principal(
    shares: tuple[int | float, ...],
    key: tuple[int | float, ...],
    value: tuple[int | float, ...],
    **settings: Any,
) -> KVQuantConfig:
    """Transform codes of the principal channels, see `vkq_jax.codes.fitting`."""

    def side(planes: tuple[int | float, ...], **own: Any) -> DictionaryCodes:
        classes = tuple(TokenClass(*c) for c in zip(shares, planes, strict=True))
        return DictionaryCodes(classes, codebook=256, learned=True, **own, **settings)

    if settings:
        return KVQuantConfig(key=side(key), value=side(value))
    # Keys under the queries' metric in fixed steps, values in units of their size.
    return KVQuantConfig(
        key=side(key, centres=0, metric=True, scale=None),
        value=side(value, centres=0, scale="norm"),
    )


_TEXT_LIKE_1BIT = _principal((0.29, 0.5, 0.21), (1.5, 1, 0.5), (1.5, 1, 0.5))

calibrated_presets: Mapping[str, tuple[KVQuantConfig, ...]] = MappingProxyType(
    {
        "vkq-1bit": (
            _both(_hadamard((0.1, 3), (0.2, 2), (0.3, 1), (0.4, 0), codebook=256)),
            _TEXT_LIKE_1BIT,
            _TEXT_LIKE_1BIT.with_codes(order="attention"),
            # Most tokens have their centroid alone, so that the others are nearly exact.
            _both(_hadamard((0.16, 4), (0.12, 3), (0.72, 0), codebook=256)),
        ),
        "vkq-half": (
            _principal((0.045, 0.1, 0.15, 0.705), (3, 2, 1, 0), (3, 2, 1, 0), scale="unbiased"),
        ),
        "vkq-2bit": (
            _principal((0.22, 0.5, 0.28), (3, 2, 1), (2.5, 1.75, 1), scale="unbiased"),
            _principal((0.9, 0.1), (2, 2), (2, 1.5)),
            _both(_hadamard((0.15, 4), (0.2, 3), (0.37, 2), (0.28, 0), codebook=256)),
        ),
        # Tokens around their mean, rotated by the queries' covariance, 2 bits and a scale a token.
        "oscar-2bit": (_both(_hadamard((1.0, 2), learned=True, basis="queries", scale="norm")),),
    }
)
"""Plans of about equal bits that a preset's name may stand for once a model is calibrated.

Calibration takes the one that does least to the model's own answers: which is best depends on the
model (visual tokens like classes, text-like keys the principal channels under the queries' metric,
and classes by attention).
"""


def register_preset(name: str, quant: KVQuantConfig | Quantizer) -> KVQuantConfig:
    """Gives settings of one's own a name, which is then known wherever a preset's is.

    Args:
        name: letters, digits, dots, dashes and underscores, and no preset's yet. The same settings
            may be registered again, as when a module is loaded twice.
        quant: settings, or codes of both keys and values.

    Returns:
        The settings.

    Raises:
        ValueError: a name of another form, or one that stands for other settings; no settings.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"name: expected letters, digits, dots, dashes and underscores, got {show(name)}"
        )
    settings = _both(quant) if isinstance(quant, Quantizer) else quant
    if not isinstance(settings, KVQuantConfig):
        raise ValueError(f"quant: expected a KVQuantConfig or a Quantizer, got {show(quant)}")
    if _PRESETS.setdefault(name, settings) != settings:
        raise ValueError(f"name: {show(name)} is a preset with other settings; choose another name")
    return settings


def resolve(quant: str | KVQuantConfig) -> KVQuantConfig:
    """The settings that a name stands for; settings are returned as they are.

    Args:
        quant: a key of `presets`, or settings.

    Raises:
        ValueError: there is no preset of this name, or `quant` is neither name nor settings.
    """
    if isinstance(quant, KVQuantConfig):
        return quant
    if not isinstance(quant, str):
        hint = ""
        if isinstance(quant, Quantizer):
            hint = "; for both sides KVQuantConfig(key=codes, value=codes)"
        raise ValueError(
            f"quant must be the name of a preset or a KVQuantConfig, got {show(quant)}{hint}"
        )
    if quant not in presets:
        raise ValueError(_unknown(quant))
    return presets[quant]


def _unknown(name: object) -> str:
    """The error about a name that no preset has."""
    close = difflib.get_close_matches(str(name), _PRESETS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if isinstance(name, str) and re.search("[/:]", name):
        hint = "; NAME/... and NAME:... are the command line's: here per_layer or KVQuantConfig"
    known = shorten(", ".join(_PRESETS), 290 - len(hint))
    return f"unknown preset {show(name)}, known are {known}{hint}"
