"""The figures after the plots: per layer and head for reading, arrays for all the rest."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vkq_apps.inspection.layout import Segment
from vkq_apps.inspection.measure import Inspection, TensorInspection
from vkq_apps.inspection.ranges import FRACTIONS
from vkq_jax.array_types import Array

__all__ = ["name_of_kind", "raw_arrays", "summarize"]

_NAMES = (
    "key_error",
    "key_cosine",
    "value_error",
    "value_cosine",
    "output_error",
    "visual_mass_full_precision",
    "visual_mass",
    "moved",
)


def summarize(kinds: Sequence[Inspection], segments: list[Segment]) -> dict[str, Any]:
    """Plain numbers, fit for JSON: means and medians over all, then layer by layer, head by head.

    Errors are relative squared errors; "visual_mass" and "moved" are shares of the attention of
    the last prompt token. `kinds` are inspections of all kinds of layers.

    Raises:
        ValueError: a figure is not finite.
    """
    rows: dict[int, dict[str, np.ndarray]] = {}
    for inspection in kinds:
        columns = {name: np.asarray(x, np.float64) for name, x in _columns(inspection).items()}
        for place, layer in enumerate(inspection.layers):
            rows[layer] = {name: table[place] for name, table in columns.items()}
    for layer, row in rows.items():
        for name, figures in row.items():
            if not np.isfinite(figures).all():
                raise ValueError(
                    f"{name} of layer {layer} is not finite: keys or values hold NaN or infinity"
                )
    whole = {name: np.concatenate([row[name] for row in rows.values()]) for name in _NAMES}
    nbytes = kinds[0].nbytes
    return {
        "prompt_tokens": segments[-1].stop,
        "visual_tokens": kinds[0].bits.shape[1],
        "visual_spans": [[s.start, s.length] for s in segments if s.is_visual],
        "visual_kv_bytes": nbytes.visual,
        "visual_kv_bytes_full_precision": nbytes.visual_full_precision,
        "visual_kv_reduction": round(nbytes.visual_reduction, 4),
        "text_kv_bytes": nbytes.text,
        "key_bias_kept_out": any(kind.key_bias for kind in kinds),
        "guarded_heads": sum(int(kind.after.calibration_skipped.sum()) for kind in kinds),
        "mean": {name: _short(figures.mean()) for name, figures in whole.items()},
        "median": {name: _short(np.median(figures)) for name, figures in whole.items()},
        "layers": [
            {"layer": layer} | {name: _row(figures) for name, figures in rows[layer].items()}
            for layer in sorted(rows)
        ],
    }


def raw_arrays(kinds: Sequence[Inspection]) -> dict[str, np.ndarray]:
    """Arrays that are too large for JSON, float32, by name; `layers` [L] are their numbers.

    Where layers have heads of several sizes, names start with them, as `2_heads_of_16_`.

    `weights_*` [L, N, V]: attention weights on the visual tokens. `bits` [L, V]: per element of
    each visual token. `*_error_of_tokens` [L, V]: relative squared error of each. `*_quantiles`
    [F, L, K, H] at `fractions` [F]; `*_coded_quantiles` those of the channels that the codes
    describe, and `*_lowest`, `*_highest` [L, K, H] their levels, see `ChannelRanges`; NaN in heads
    that have none.
    """
    found = {"fractions": np.asarray(FRACTIONS, np.float32)}
    for kind in kinds:
        start = f"{name_of_kind(kind)}_" if len(kinds) > 1 else ""
        found |= {f"{start}{name}": array for name, array in _arrays(kind).items()}
    return found


def name_of_kind(kind: Inspection) -> str:
    """Names layers by their KV heads and the channels of each."""
    heads, channels = kind.key.ranges.quantiles.shape[2:]
    return f"{heads}_heads_of_{channels}"


def _columns(inspection: Inspection) -> dict[str, Array]:
    """Figures of each layer and head."""
    figures = (
        inspection.key.error.relative_squared_error,
        inspection.key.error.cosine,
        inspection.value.error.relative_squared_error,
        inspection.value.error.cosine,
        inspection.output_error,
        inspection.before.visual_mass,
        inspection.after.visual_mass,
        inspection.moved,
    )
    return dict(zip(_NAMES, figures, strict=True))


def _arrays(inspection: Inspection) -> dict[str, np.ndarray]:
    return {
        "layers": np.asarray(inspection.layers, np.int32),
        "weights_before": np.asarray(inspection.before.visual),
        "weights_after": np.asarray(inspection.after.visual),
        "bits": np.asarray(inspection.bits),
        **_tensor_arrays("key", inspection.key),
        **_tensor_arrays("value", inspection.value),
    }


def _tensor_arrays(name: str, tensor: TensorInspection) -> dict[str, np.ndarray]:
    ranges = tensor.ranges
    parts = {
        "error_of_tokens": tensor.error_of_tokens,
        "quantiles": ranges.quantiles,
        "coded_quantiles": ranges.coded_quantiles,
        "lowest": ranges.lowest,
        "highest": ranges.highest,
    }
    return {
        f"{name}_{part}": np.asarray(array) for part, array in parts.items() if array is not None
    }


def _row(values: np.ndarray) -> list[float]:
    return [_short(value) for value in values]


def _short(value: float) -> float:
    """Six significant digits: more would only claim a precision that is not there."""
    return float(f"{value:.6g}")
