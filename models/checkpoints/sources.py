"""Where parameters lie in the files: the stored tensor's name, layout and rows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["Index", "Layout", "Rows", "Size", "Source"]

type Index = tuple[slice, ...]


class Layout(Enum):
    """How a stored tensor relates to the parameter."""

    SAME = auto()
    TRANSPOSED = auto()
    """Stored [out, in], held [in, out]."""
    CONVOLUTION = auto()
    """Stored [out, *kernel] with a stride of the kernel's size, held [product of kernel, out]."""
    SWAPPED = auto()
    """Stored [E, out, in], held [E, in, out]."""


class Rows(NamedTuple):
    """The rows [start, stop) of a stored tensor, which has `total` of them along `axis`.

    A parameter may have more: padding after them, of zeros.
    """

    start: int
    stop: int
    total: int
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter lies in the files.

    Attributes:
        name: of the stored tensor; `{}` in it is the layer's number, a second one the expert's.
        layout: how that tensor relates to the parameter.
        kernel: of a convolution: channels and the extents that a patch has.
        leading: axes of length 1 that the stored tensor has before those of the parameter.
        rows: where several parameters share a stored tensor: which of its rows are this one.
        numbers: the layers' numbers in the files, where those are not 0, 1, 2 ...
        infinite: infinity is a value like others: a range without an end.
    """

    name: str
    layout: Layout = Layout.SAME
    kernel: tuple[int, ...] = ()
    leading: int = 0
    rows: Rows | None = None
    numbers: tuple[int, ...] | None = None
    infinite: bool = False

    @property
    def stacked(self) -> int:
        """Over how many leading axes of the parameter stored tensors are stacked."""
        return self.name.count("{}")

    def names(self, parameter: Any, own: Index | None = None) -> list[str]:
        """The names of the stored tensors, layer by layer; of a part of the parameter: its own."""
        stacks = parameter.shape[: self.stacked]
        slices = [slice(0, size) for size in stacks] if own is None else own[: self.stacked]
        places: list[Sequence[int]] = [range(s.start, s.stop) for s in slices]
        if self.numbers is not None:
            places[0] = [self.numbers[place] for place in places[0]]
        return [self.name.format(*number) for number in itertools.product(*places)]

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        """Room for a parameter in the order in memory of its stored tensors.

        Copies from those then run at the speed of memory; devices transpose as they take it.
        """
        if self.layout is Layout.SAME:
            return np.empty(shape, dtype)
        return np.empty((*shape[:-2], shape[-1], shape[-2]), dtype).swapaxes(-1, -2)

    def parts(self, parameter: np.ndarray) -> np.ndarray:
        """The parameter's parts of one stored tensor each, in the order of `names`; views."""
        return parameter.reshape(-1, *parameter.shape[self.stacked :])

    def stored_shape(self, parameter: Any) -> tuple[int, ...]:
        """The shape of the stored tensor of one layer."""
        shape = parameter.shape[self.stacked :]
        match self.layout:
            case Layout.TRANSPOSED:
                shape = shape[::-1]
            case Layout.CONVOLUTION:
                shape = (shape[-1], *self.kernel)
            case Layout.SWAPPED:
                shape = (*shape[:-2], shape[-1], shape[-2])
        if self.rows is not None:
            axis = self.rows.axis
            shape = (*shape[:axis], self.rows.total, *shape[axis + 1 :])
        return (1,) * self.leading + shape

    def stored_index(self, own: Index) -> Index:
        """The slice of each stored tensor that a part of the parameter lies in.

        `own` are slices [start, stop) of the parameter's axes. A convolution is in one part.
        """
        index = own[self.stacked :]
        match self.layout:
            case Layout.CONVOLUTION:
                index = (index[-1],)
            case Layout.TRANSPOSED | Layout.SWAPPED:
                index = (*index[:-2], index[-1], index[-2])
        if self.rows is not None:
            first, last, _, axis = self.rows
            moved = [min(first + edge, last) for edge in (index[axis].start, index[axis].stop)]
            index = (*index[:axis], slice(*moved), *index[axis + 1 :])
        return (slice(0, 1),) * self.leading + index

    def to_parameter(self, tensor: np.ndarray) -> np.ndarray:
        """A stored tensor, or its `stored_index`, as the parameter holds it; no copy."""
        tensor = tensor.reshape(tensor.shape[self.leading :])
        match self.layout:
            case Layout.SAME:
                return tensor
            case Layout.SWAPPED:
                return tensor.swapaxes(-1, -2)
        return tensor.reshape(tensor.shape[0], -1).T

    def to_tensor(self, part: np.ndarray) -> np.ndarray:
        """One layer of the parameter as it is stored, those of its rows that it is."""
        tensor = part if self.layout is Layout.SAME else part.swapaxes(-1, -2)
        tensor = tensor.reshape(-1, *self.kernel) if self.kernel else tensor
        if self.rows is not None:
            own = slice(self.rows.stop - self.rows.start)
            tensor = tensor[(slice(None),) * self.rows.axis + (own,)]
        return tensor.reshape((1,) * self.leading + tensor.shape)


class Size(NamedTuple):
    """A size that config.json states and that a stored tensor shows.

    Attributes:
        setting: the field.
        value: what it says, or what it and others make of that axis.
        name: of the tensor.
        axis: of the tensor; None for a prefix of names that the number of a layer follows, where
            the files hold at least `value` layers.
    """

    setting: str
    value: int
    name: str
    axis: int | None = None
