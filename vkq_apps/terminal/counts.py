"""Bounds of the counts on a command line."""

import typer

__all__ = ["LARGEST", "check_count"]

LARGEST = 2**31 - 1
"""Largest count that a command takes: positions and lengths are int32."""


def check_count(count: int | None) -> int | None:
    """The count of an option, for its `callback`; refuses those above `LARGEST`."""
    if count is not None and count > LARGEST:
        raise typer.BadParameter(f"expected at most {LARGEST}, got {count}")
    return count
