"""Comma-separated lists in options."""

import sys
from collections.abc import Collection

from vkq_apps.terminal.counts import LARGEST

__all__ = ["entries_of", "names", "numbers"]


def names(option: str, text: str, known: Collection[str] | None = None) -> list[str]:
    """The entries of a comma-separated list, each once; at least one, and all of them known."""
    entries = entries_of(text)
    if not entries:
        raise ValueError(f"{option}: expected names, comma-separated, got {text!r}")
    unknown = [entry for entry in entries if known is not None and entry not in known]
    if known is not None and unknown:
        raise ValueError(
            f"{option}: expected some of {', '.join(known)}, comma-separated, got {unknown[0]!r}"
        )
    return entries


def numbers[N: (int, float)](option: str, text: str, kind: type[N], count: int = 0) -> list[N]:
    """The numbers of a comma-separated list, `count` of them if it is given.

    They are positive, and finite or at most `LARGEST`.
    """
    try:
        numbers = [kind(entry) for entry in entries_of(text)]
    except ValueError:
        numbers = []
    most = LARGEST if kind is int else sys.float_info.max
    in_range = all(0 < number <= most for number in numbers)
    if not numbers or not in_range or (count and len(numbers) != count):
        wanted = "positive integers below 2**31" if kind is int else "finite positive numbers"
        wanted = f"{count} {wanted}" if count else wanted
        raise ValueError(f"{option}: expected {wanted}, comma-separated, got {text!r}")
    return numbers


def entries_of(text: str) -> list[str]:
    """The entries of a comma-separated list, each once, in order; empty ones are left out."""
    return list(dict.fromkeys(entry for entry in map(str.strip, text.split(",")) if entry))
