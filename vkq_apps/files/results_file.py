"""A file of measured rows: written after each row, so that nothing is lost when time runs out."""

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vkq_apps.files.outputs import check_record_place
from vkq_jax.files.atomic_write import atomic_write
from vkq_jax.messages import shorten, show

__all__ = [
    "ResultsFile",
    "as_written",
    "join_files",
    "read_json",
    "source_digest",
    "write_json",
]

PACKAGES = ("vkq_jax", "pallas_kernels", "models", "vkq_apps")
FINAL = ("measured", "out of memory", "does not fit", "not supported")


class ResultsFile:
    """Rows with what they have in common, kept in memory and, if there is a path, in a file.

    Every row carries the device, the commit and the digest of the source that it was measured with,
    and the time at which its run began: rows of one `run` come from one machine and moment.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any], *, resume: bool = False):
        """Starts anew, or with those rows of the file that this code measured on this device.

        Args:
            path: JSON file; None keeps nothing.
            head: what is said once: the command, its settings, `provenance()`.
            resume: take over the rows that are in the file.

        Raises:
            ValueError: the path cannot be written to, or holds something other than the command's
                results.
        """
        if path is not None:
            check_record_place(path, head["command"])
        self.path, self.head = path, dict(head)
        self.marks = {
            "device": head["device"],
            "commit": head["commit"],
            "source": source_digest(),
            "run": head["time"],
        }
        self.rows: list[dict[str, Any]] = []
        self.dropped = 0
        if resume and path is not None and path.exists():
            earlier = read_json(path, head["command"])["rows"]
            self.rows = [row for row in earlier if self._mine(row)]
            self.dropped = len(earlier) - len(self.rows)

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row that answers these settings for good, if there is one; a failure does not."""
        return next((row for row in self._all(key) if row["status"] in FINAL), None)

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row of this run and writes the file; what changes in the row later does in it."""
        row |= self.marks
        self.rows.append(row)
        self.write()

    def discard(self, key: Mapping[str, Any]) -> None:
        """Takes rows of these settings out: they are measured again."""
        gone = self._all(key)
        self.rows = [row for row in self.rows if not any(row is other for other in gone)]

    def write(self) -> None:
        """Writes the file."""
        write_json(self.path, self.record())

    def record(self) -> dict[str, Any]:
        """All of it, as the file holds it."""
        return {**self.head, "source": self.marks["source"], "rows": self.rows}

    def _all(self, key: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [row for row in self.rows if all(row.get(name) == key[name] for name in key)]

    def _mine(self, row: dict[str, Any]) -> bool:
        return all(row.get(name) == self.marks[name] for name in ("device", "source"))


def read_json(path: Path, command: str) -> dict[str, Any]:
    """A record that `command` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else.
    """
    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise ValueError(f"{path}: expected a file that `{command}` wrote, got no regular file")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        record = None
    head, rows = (record, record.get("rows")) if isinstance(record, dict) else ({}, None)
    if (
        head.get("command") != command
        or not isinstance(rows, list)
        or not all(isinstance(row, dict) and "status" in row for row in rows)
    ):
        raise ValueError(f"{path} was not written by `{command}`")
    return head


@contextmanager
def as_written(path: Path | None, command: str) -> Iterator[None]:
    """Whatever fails over rows of a file that was changed by hand is one clear error.

    Raises:
        ValueError: the block fails over a row that `command` did not write like this.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected rows as `{command}` writes them, got others: "
            f"{type(error).__name__}, {shorten(str(error), 120)}"
        ) from error


def join_files(paths: Sequence[Path], command: str, settings: Sequence[str]) -> dict[str, Any]:
    """The record of all rows of files that one command wrote on one kind of device.

    Rows stay as they were measured, each with the commit and the time of its run.

    Args:
        paths: of the files.
        command: that wrote them.
        settings: names of the settings that tell rows from each other.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another command or device, or two rows of the same settings.
    """
    records = [read_json(path, command) for path in paths]
    found: dict[tuple[Any, ...], Path] = {}
    for path, record in zip(paths, records, strict=True):
        device, first = record.get("device"), records[0].get("device")
        if device != first:
            raise ValueError(
                f"{path}: expected rows of {show(first)}, as in {paths[0]}, got {show(device)}"
            )
        for row in record["rows"]:
            key = tuple(repr(row.get(name)) for name in settings)
            if (other := found.setdefault(key, path)) is not path:
                raise ValueError(f"expected each row in one file, got one in {other} and {path}")
    rows = [row for record in records for row in record["rows"]]
    return {**records[0], "left_out": [], "rows": rows}


def write_json(path: Path | None, record: Mapping[str, Any]) -> None:
    """Writes a record, whole or not at all (see `atomic_write`); nothing without a path."""
    if path is None:
        return
    with atomic_write(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def source_digest() -> str:
    """A digest of the Python files that were measured.

    The commit alone does not tell: a machine that only measures may have no git, and a changed
    checkout has no name.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        file = importlib.import_module(package).__file__
        assert file is not None
        folder = Path(file).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
