"""Score calibration: an affine map of the visual scores that narrows their range (CalibQuant)."""

import dataclasses

import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float

__all__ = ["ScoreCalibration", "calibrate", "score_map"]


@dataclasses.dataclass(frozen=True)
class ScoreCalibration:
    """Settings of the score map of CalibQuant (arXiv 2502.14882v2, "calibration").

    The visual scores of one query and head (after a soft-cap, if any), which span [gamma, delta],
    are mapped to [gamma - tau1, delta - tau2] before the joint softmax with the text scores. The
    slope of that map is 1 - (tau2 - tau1) / (delta - gamma): where the scores span less than
    tau2 - tau1 it is negative and would reverse the order of the tokens (the paper's code has no
    guard). There the scores are left as they are, and the case is counted.

    Attributes:
        tau1, tau2: how far the lowest and the highest score are lowered, in nats.
    """

    tau1: float = 0.0
    tau2: float = 3.0


def calibrate(
    scores: Float[Array, "*lead V"], visible: Bool[Array, "*lead V"], settings: ScoreCalibration
) -> tuple[Float[Array, "*lead V"], Bool[Array, "*lead"]]:
    """Maps the visible scores of each row; also returns where the guard left a row as it was.

    Rows without a visible score are returned unchanged and do not count as guarded.
    """
    gamma = jnp.min(scores, axis=-1, where=visible, initial=jnp.inf)
    delta = jnp.max(scores, axis=-1, where=visible, initial=-jnp.inf)
    slope, shift, guarded = score_map(gamma, delta, settings)
    return scores * slope[..., None] + shift[..., None], guarded


def score_map(
    gamma: Float[Array, "*lead"], delta: Float[Array, "*lead"], settings: ScoreCalibration
) -> tuple[Float[Array, "*lead"], Float[Array, "*lead"], Bool[Array, "*lead"]]:
    """Slope and shift of the map of each row's scores, and where the guard left it the identity.

    Args:
        gamma, delta: the row's lowest and highest score; gamma > delta where it has none.
        settings: of the map.
    """
    some = gamma <= delta
    span = jnp.where(some, delta - gamma, 0.0)
    narrowing = settings.tau2 - settings.tau1
    keeps_order = span > narrowing
    slope = jnp.where(keeps_order, 1.0 - narrowing / jnp.where(keeps_order, span, 1.0), 1.0)
    lowest = jnp.where(some, gamma, 0.0)
    shift = jnp.where(keeps_order, lowest * (1.0 - slope) - settings.tau1, 0.0)
    return slope, shift, some & ~keeps_order
