"""The figures behind the plots: per layer and head for reading, arrays for all the rest."""

from typing import Any

import numpy as np

from vkq_apps.inspection.layout import Segment
from vkq_apps.inspection.measure import Inspection, TensorInspection
from vkq_apps.inspection.ranges import FRACTIONS

__all__ = ["raw_arrays", "summarize"]


def summarize(inspection: Inspection, segments: list[Segment]) -> dict[str, Any]:
    """Plain numbers, fit for JSON: means and medians over all, then layer by layer, head by head.

    Errors are relative squared errors; "visual_mass" and "moved" are shares of the attention of
    the last prompt token.

    Raises:
        ValueError: a figure is not finite.
    """
    per_layer = {
        "key_error": inspection.key.error.relative_squared_error,
        "key_cosine": inspection.key.error.cosine,
        "value_error": inspection.value.error.relative_squared_error,
        "value_cosine": inspection.value.error.cosine,
        "output_error": inspection.output_error,
        "visual_mass_full_precision": inspection.before.visual_mass,
        "visual_mass": inspection.after.visual_mass,
        "moved": inspection.moved,
    }
    columns = {name: np.asarray(table, np.float64) for name, table in per_layer.items()}
    for name, table in columns.items():
        if not np.isfinite(table).all():
            layer = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
            raise ValueError(
                f"{name} of layer {layer} is not finite: keys or values hold NaN or infinity"
            )
    nbytes = inspection.nbytes
    return {
        "prompt_tokens": segments[-1].stop,
        "visual_tokens": sum(segment.length for segment in segments if segment.is_visual),
        "visual_spans": [[s.start, s.length] for s in segments if s.is_visual],
        "visual_kv_bytes": nbytes.visual,
        "visual_kv_bytes_full_precision": nbytes.visual_full_precision,
        "visual_kv_reduction": round(nbytes.visual_reduction, 4),
        "text_kv_bytes": nbytes.text,
        "key_bias_kept_out": inspection.key_bias,
        "guarded_heads": int(inspection.after.calibration_skipped.sum()),
        "mean": {name: _short(table.mean()) for name, table in columns.items()},
        "median": {name: _short(np.median(table)) for name, table in columns.items()},
        "layers": [
            {"layer": layer} | {name: _row(table[layer]) for name, table in columns.items()}
            for layer in range(len(inspection.output_error))
        ],
    }


def raw_arrays(inspection: Inspection) -> dict[str, np.ndarray]:
    """Arrays that are too large for JSON, float32, by name.

    `weights_*` [L, N, V]: attention weights on the visual tokens. `bits` [L, V]: per element of
    each visual token. `*_error_of_tokens` [L, V]: relative squared error of each. `*_quantiles`
    [F, L, K, H] at `fractions` [F]; `*_coded_quantiles` those of the channels that the codes
    describe, and `*_lowest`, `*_highest` [L, K, H] their levels, see `ChannelRanges`; NaN in heads
    that have none.
    """
    return {
        "fractions": np.asarray(FRACTIONS, np.float32),
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
