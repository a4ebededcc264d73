"""Settings of a quantized visual KV cache."""

import dataclasses

from vkq_jax.calibration import ScoreCalibration
from vkq_jax.quantized import CodeFamily

__all__ = ["KVQuantConfig"]


@dataclasses.dataclass(frozen=True)
class KVQuantConfig:
    """How visual keys and values are coded, and whether visual scores are calibrated. Hashable.

    Attributes:
        key: code family of the keys (after RoPE). value: code family of the values.
        calibration: map of the visual scores before the softmax; None leaves them alone.

    Raises:
        ValueError: an attribute is of another type, or not hashable.
    """

    key: CodeFamily
    value: CodeFamily
    calibration: ScoreCalibration | None = None

    def __post_init__(self):
        """Checks the settings."""
        for name in ("key", "value"):
            family = getattr(self, name)
            if not isinstance(family, CodeFamily):
                raise ValueError(
                    f"{name} must be a CodeFamily such as LevelCodes, SignCodes or Dense, "
                    f"got {family!r}"
                )
        if not isinstance(self.calibration, ScoreCalibration | None):
            raise ValueError(
                f"calibration must be a ScoreCalibration or None, got {self.calibration!r}"
            )
        try:
            hash(self)
        except TypeError as error:
            raise ValueError(f"settings must be hashable, got {self!r}") from error
