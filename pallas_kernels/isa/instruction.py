"""The parts that all instructions of `operations.Operations` are made of."""

import abc
from typing import Any

__all__ = ["Instructions", "Value"]

Value = Any  # what a backend computes with; a body never looks inside


class Instructions(abc.ABC):
    """Puts one instruction, or has a method that computes it."""

    @abc.abstractmethod
    def emit(
        self, ptx: str, results: str, arguments: str, *values: Value, ordered: bool = False
    ) -> Any:
        """One instruction: `$0, $1, ...` in `ptx` are its results, then its arguments.

        Args:
            ptx: the instruction. results, arguments: a type letter for each.
            values: the arguments.
            ordered: it touches memory or other lanes and must stay where it is.
        """
