"""Settings of a quantized visual KV cache."""

import dataclasses
import math
from typing import Any

from vkq_jax.codes.dense import Dense
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.codes.quantized import Quantizer
from vkq_jax.messages import show
from vkq_jax.validation import check_fields, check_hashable

__all__ = ["KVQuantConfig", "ScoreCalibration"]


@dataclasses.dataclass(frozen=True)
class ScoreCalibration:
    """Settings of the score map of CalibQuant (arXiv 2502.14882v2, "calibration").

    The visual scores of one query and head (after a soft-cap, if any), which span [gamma, delta],
    are mapped to [gamma - tau1, delta - tau2] before the joint softmax with the text scores. The
    slope of that map is 1 - (tau2 - tau1) / (delta - gamma): where the scores span less than
    tau2 - tau1 it is negative and would reverse the order of the tokens (the paper's code has no
    guard); where all are equal no slope exists. In both cases the scores stay as they are, and the
    case is counted.

    Attributes:
        tau1, tau2: how far the lowest and the highest score are lowered, in nats.

    Raises:
        ValueError: an attribute is not a finite number.
    """

    tau1: float = 0.0
    tau2: float = 3.0

    def __post_init__(self):
        """Checks the settings."""
        check_fields(self)
        for name in ("tau1", "tau2"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class KVQuantConfig:
    """How visual keys and values are coded, and whether visual scores are calibrated. Hashable.

    Attributes:
        key: quantizer of the keys (after RoPE).
        value: quantizer of the values.
        calibration: map of the visual scores before the softmax; None leaves them alone.

    Raises:
        ValueError: an attribute is of another type, or not hashable; or only one side has
            dictionary codes, or the two have different shares or another order of tokens (a head
            keeps one order).
    """

    key: Quantizer
    value: Quantizer
    calibration: ScoreCalibration | None = None

    def __post_init__(self):
        """Checks the settings."""
        for name in ("key", "value"):
            family = getattr(self, name)
            if not isinstance(family, Quantizer):
                raise ValueError(
                    f"{name} must be the settings of one side's codes, such as SignCodes() or "
                    f'presets["vkq-1bit"].{name}, got {show(family)}'
                )
        if not isinstance(self.calibration, ScoreCalibration | None):
            raise ValueError(
                f"calibration must be a ScoreCalibration or None, got {show(self.calibration)}"
            )
        orders = [
            (side.order, [c.share for c in side.classes])
            if isinstance(side, DictionaryCodes)
            else None
            for side in (self.key, self.value)
        ]
        if orders[0] != orders[1]:
            raise ValueError(
                "dictionary codes of keys and of values must have one order and classes of the "
                f"same shares, got {orders[0]} and {orders[1]}"
            )
        for name in ("key", "value"):
            check_hashable(name, getattr(self, name))

    def with_codes(self, **settings: Any) -> "KVQuantConfig":
        """The same, with other settings of the codes of both sides."""
        sides = {side: getattr(self, side) for side in ("key", "value")}
        changed = {side: dataclasses.replace(codes, **settings) for side, codes in sides.items()}
        return dataclasses.replace(self, **changed)

    @property
    def needs_attention(self) -> bool:
        """Whether coding asks for the attention that tokens get."""
        match self.key:
            case Dense():
                return self.key.keeps_attention
            case DictionaryCodes():
                return self.key.order == "attention" and len(self.key.classes) > 1
        return False
