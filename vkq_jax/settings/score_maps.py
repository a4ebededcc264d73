"""Score calibration: an affine map of the visual scores that narrows their range (CalibQuant).

Per step, each query's map follows from its own lowest and highest score. A static map is made once,
from the ranges of sample prompts; decoding then has none to find.
"""

import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.settings.config import KVQuantConfig, ScoreCalibration
from vkq_jax.settings.layer_groups import Cells, LayerGroups, Quant

__all__ = ["ScoreMap", "calibrate", "score_map", "visible_range"]


@frozen_pytree
class ScoreMap:
    """The map s -> slope * s + shift of visual scores, which are in nats, after `logits_scale`.

    A static map (ours; CalibQuant finds gamma and delta at every step) has one slope and shift for
    each layer and query head, [L, N], in a `KVCache`, and [N] in a `LayerCache`. It belongs to the
    model and the codes that it was calibrated with (see `models.calibrate_scores`): it carries
    their settings, also through files, and attention refuses it on a cache of other codes.

    Attributes:
        slope, shift: float32, of each row of scores.
        quant: settings it was calibrated with; None (a map of your own making) fits any codes.
    """

    slope: Float[Array, "*lead"]
    shift: Float[Array, "*lead"]
    quant: KVQuantConfig | LayerGroups | None = static_field(default=None)

    def check(self) -> None:
        """Raises ValueError for slopes or shifts that no map can have."""
        slope, shift = self.slope, self.shift
        for name, values, good, kind in (
            ("slope", slope, jnp.isfinite(slope) & (slope >= 0), "finite and not negative"),
            ("shift", shift, jnp.isfinite(shift), "finite"),
        ):
            if not good.all():
                raise ValueError(f"expected every {name} {kind}, got {values[~good][0]}")

    def apply(self, scores: Float[Array, "*lead V"]) -> Float[Array, "*lead V"]:
        """The mapped scores of each row."""
        return scores * self.slope[..., None] + self.shift[..., None]

    def check_codes(self, quant: Quant) -> None:
        """Checks that the map was calibrated with these codes of keys and values.

        The calibration of the codes does not count: a static map takes its place.

        Raises:
            ValueError: the map was calibrated with other codes, of all layers or of some.
        """
        if self.quant is None:
            return
        own, asked = (_groups(settings) for settings in (self.quant, quant))
        if [cells for cells, _ in own] != [cells for cells, _ in asked]:
            raise ValueError(
                "score_map was calibrated with other codes: expected its own settings of layers "
                "and heads (score_map.quant), got others"
            )
        for (_, expected), (_, got) in zip(own, asked, strict=True):
            for name in ("key", "value"):
                if getattr(expected, name) != getattr(got, name):
                    raise ValueError(
                        f"score_map was calibrated with other codes: expected {name}="
                        f"{show(getattr(expected, name))}, got {name}={show(getattr(got, name))}"
                    )

    def check_heads(self, *, num_layers: int, num_kv_heads: int) -> None:
        """Raises ValueError unless the map is [L, N] for these layers and heads."""
        shape = self.slope.shape
        if len(shape) != 2 or shape[0] != num_layers or not shape[1] or shape[1] % num_kv_heads:
            raise ValueError(
                f"score_map must be [L, N] for {num_layers} layers and query heads that share "
                f"{num_kv_heads} key/value heads, got {list(shape)}"
            )


def _groups(quant: Quant) -> tuple[tuple[Cells | None, KVQuantConfig], ...]:
    return quant.groups if isinstance(quant, LayerGroups) else ((None, quant),)


def calibrate(
    scores: Float[Array, "*lead V"], visible: Bool[Array, "*lead V"], settings: ScoreCalibration
) -> tuple[Float[Array, "*lead V"], Bool[Array, "*lead"]]:
    """Maps the visible scores of each row; also returns where the guard left a row as it was.

    Rows without a visible score are returned unchanged and do not count as skipped.
    """
    mapping, calibration_skipped = score_map(*visible_range(scores, visible), settings)
    return mapping.apply(scores), calibration_skipped


def visible_range(
    scores: Float[Array, "*lead V"], visible: Bool[Array, "*lead V"]
) -> tuple[Float[Array, "*lead"], Float[Array, "*lead"]]:
    """The lowest and the highest visible score of each row, inf and -inf where there is none."""
    lowest = jnp.min(scores, axis=-1, where=visible, initial=jnp.inf)
    return lowest, jnp.max(scores, axis=-1, where=visible, initial=-jnp.inf)


def score_map(
    gamma: Float[Array, "*lead"], delta: Float[Array, "*lead"], settings: ScoreCalibration
) -> tuple[ScoreMap, Bool[Array, "*lead"]]:
    """The map of each row's scores, and where the guard left it the identity.

    Args:
        gamma, delta: the row's lowest and highest score; gamma > delta where it has none.
        settings: of the map.
    """
    some = gamma <= delta
    span = jnp.where(some, delta - gamma, 0.0)
    narrowing = settings.tau2 - settings.tau1
    keeps_order = span > max(narrowing, 0.0)  # equal scores have no slope either
    slope = jnp.where(keeps_order, 1.0 - narrowing / jnp.where(keeps_order, span, 1.0), 1.0)
    lowest = jnp.where(some, gamma, 0.0)
    shift = jnp.where(keeps_order, lowest * (1.0 - slope) - settings.tau1, 0.0)
    return ScoreMap(slope, shift), some & ~keeps_order
