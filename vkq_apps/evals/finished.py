"""Results of a finished evaluation, which presets can be added to."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vkq_apps.evals.report import ALL
from vkq_apps.evals.settings import NONE
from vkq_apps.files.text_files import read_text

__all__ = ["FinishedRun", "check_marks", "read_results"]


def read_results(path: Path) -> dict[str, Any]:
    """The record of an evaluation.

    Raises:
        ValueError: the file does not hold one.
    """
    try:
        record = json.loads(read_text(path))
        for name, kind in _NEEDED.items():
            if not isinstance(record[name], kind):
                raise TypeError(name)
        rows = {NONE: record["presets"][NONE], **record["presets"]}
        for row in rows.values():
            _check_row(row)
        if not isinstance(record["marks"]["codes"], dict) or not math.isfinite(record["seconds"]):
            raise TypeError("expected objects and finite numbers")
    except KeyError as error:
        raise ValueError(f"expected results of `vkq eval` in {path}: it lacks {error}") from error
    # OverflowError: an integer that is no float.
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"expected results of `vkq eval` in {path}") from error
    return record


# A resumed run needs these fields; they are checked before it asks for hours.
_NEEDED = {
    "marks": dict,
    "presets": dict,
    "versions": dict,
    "seconds": int | float,
    "offline_table_bytes": dict,
    "quantize_at": str,
}


def _check_row(row: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError unless a row has what tables and joins read."""
    numbers = [row["visual_kv_reduction"], row["bits_per_element"]["mean"]]
    for figures in (row["tasks"][ALL], *row["tasks"].values()):
        low, high = figures["lost_interval"]
        numbers += [figures["samples"], figures["exact"], figures["lost"], low, high]
        numbers += [x for x in (figures["kl"], figures.get("score")) if x is not None]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise TypeError("expected finite numbers")


def check_marks(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError unless both are of the same questions, weights, options and device."""
    for name in expected:
        if name != "codes" and found.get(name) != expected[name]:
            raise ValueError(
                f"{path} was made with other settings: {name} is {str(found.get(name))[:80]!r} "
                f"there and {str(expected[name])[:80]!r} here"
            )


class FinishedRun:
    """The rows of a file of results that the same questions to the same weights gave."""

    def __init__(self, path: Path, marks: Mapping[str, Any]):
        """Reads the file.

        Args:
            path: of the results.
            marks: what all rows depend on, and the digests of `codes` by preset.

        Raises:
            ValueError: the file does not hold results, or has other marks.
        """
        self._path = path
        try:
            self.record = read_results(path)
            found, self._rows = self.record["marks"], self.record["presets"]
            check_marks(found, marks, path)
        except ValueError as error:
            raise ValueError(
                f"--resume: {error}; give the same settings, or leave --resume out to start anew"
            ) from error
        self._codes = marks["codes"]
        self.known = {
            name
            for name, digest in self._codes.items()
            if name in self._rows and found["codes"].get(name) == digest
        }

    def has(self, names: Sequence[str]) -> bool:
        """Whether the file has exactly these rows, in this order, and all are up to date."""
        current = all(name in self.known for name in names if name in self._codes)
        return list(self._rows) == list(names) and current

    def join(self, rows: Mapping[str, Any], names: list[str], full: str) -> dict[str, Any]:
        """Rows in the order of `names`: new ones, and those of the file for the others.

        Raises:
            ValueError: full precision did not answer as it did in the file, so that what was lost
                against it cannot stand side by side.
        """
        old, new = (self._right(row) for row in (self._rows[full], rows[full]))
        if old != new:
            raise ValueError(
                f"--resume: full precision has other answers than in {self._path} ({old} there, "
                f"{new} here): leave --resume out to measure all presets anew"
            )
        return {name: rows.get(name, self._rows.get(name)) for name in names}

    @staticmethod
    def _right(row: Mapping[str, Any]) -> dict[str, float]:
        return {task: figures["exact"] for task, figures in row["tasks"].items()}
