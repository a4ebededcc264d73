"""Steps that a failed run still has to take; imports nothing, so that `vkq` starts at once."""

from collections.abc import Callable

__all__ = ["at_failure"]

at_failure: list[Callable[[int], None]] = []
"""Each is called with the exit code once the failure is told."""
