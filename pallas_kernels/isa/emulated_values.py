"""Values of lanes in an emulated kernel, as NumPy arrays: words, signed words, floats."""

import numpy as np

__all__ = ["EmulatedValues", "as_float", "as_signed", "as_word"]


class EmulatedValues:
    """Arrays [warps, 32] of what an emulated kernel computes with."""

    _shape: tuple[int, int]

    def _full(self, value) -> np.ndarray:
        value = np.asarray(value)
        if value.dtype.kind == "f":
            value = as_float(value)
        elif value.dtype != np.int64 or value.ndim == 0:
            value = as_word(value)
        return np.broadcast_to(value, self._shape)


def as_word(value) -> np.ndarray:
    """The bits of integers, as uint32."""
    value = np.asarray(value)
    if value.dtype == np.uint32:
        return value
    if value.dtype == np.int32:
        return value.view(np.uint32)
    return np.asarray(value & 0xFFFFFFFF, np.uint32)


def as_signed(value) -> np.ndarray:
    """The same as int32."""
    return as_word(value).view(np.int32)


def as_float(value) -> np.ndarray:
    """Numbers as float32."""
    return np.asarray(value, np.float32)
