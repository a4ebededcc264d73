"""The log of an evaluation: one line for every sample of every preset, written as it is known.

The first line holds the settings. A killed run is resumed from the lines that are there; a line
that the kill cut off does not count.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from vkq_apps.files.resuming import check_settings
from vkq_jax.files.atomic_write import lock
from vkq_jax.validation import check_fields

__all__ = ["Record", "SampleLog", "log_path"]


@dataclasses.dataclass(frozen=True)
class Record:
    """The answer of one preset to one sample, its size and its distance from full precision.

    Attributes:
        preset, task, sample: names of what was asked.
        answer: the text; of choices the chosen one.
        positions: tokens of full precision's own answer, its stop token included.
        kl: KL(full precision || preset) summed over these positions, nats.
        first_difference: first of these positions where the most likely token differs from full
            precision's; None: it differs nowhere.
        key_bytes, value_bytes: of the sample's coded visual cache. elements: of each of the two.
        full_bytes: of its visual cache in the model's dtype.
        layers: errors in each layer by name, see `layers.layer_errors`; None unless asked for.
    """

    preset: str
    task: str
    sample: str
    answer: str
    positions: int
    kl: float
    first_difference: int | None
    key_bytes: float
    value_bytes: float
    elements: int
    full_bytes: int
    layers: dict[str, list[float]] | None = None


def log_path(out: Path) -> Path:
    """The log's file, beside that of the results."""
    return out.with_name(f"{out.name}.samples.jsonl")


class SampleLog:
    """All records, kept in memory and, if there is a path, in a file that only grows."""

    def __init__(self, path: Path | None, head: Mapping[str, Any], *, resume: bool = False):
        """Starts anew, or with the records of a file that has the same head.

        Args:
            path: the file; None keeps none.
            head: settings that all records depend on.
            resume: go on with what the file holds, if there is one.

        Raises:
            ValueError: the file belongs to other settings, is no such log, or another process is
                writing it.
            OSError: it cannot be written, for example because the disk is full.
        """
        self._path, self._head = path, dict(head)
        self._records: dict[tuple[str, str, str], Record] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _hold(path)
        if resume:
            self._read(path)
        else:
            _write(path, json.dumps(self._head) + "\n")

    def get(self, preset: str, task: str, sample: str) -> Record | None:
        """The record of one sample, if there is one."""
        return self._records.get((preset, task, sample))

    def add(self, records: Iterable[Record]) -> None:
        """Adds records; once this returns they outlast a kill.

        Raises:
            OSError: the log cannot be written, for example because the disk is full.
        """
        lines = ""
        for record in records:
            key = (record.preset, record.task, record.sample)
            assert key not in self._records
            self._records[key] = record
            lines += json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n"
        if self._path is not None and lines:
            _write(self._path, lines, mode="a")

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        if not lines:  # killed before the first line was whole
            _write(path, json.dumps(self._head) + "\n")
            return
        head = _parse(path, 1, lines[0])
        check_settings(path, head, self._head)
        for number, line in enumerate(lines[1:], 2):
            record = _record(path, number, _parse(path, number, line))
            self._records[record.preset, record.task, record.sample] = record
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))


def _write(path: Path, lines: str, mode: Literal["a", "w"] = "w") -> None:
    """Writes lines that outlast a kill once this returns."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


_held: set[str] = set()  # logs that this process has locked


def _hold(path: Path) -> None:
    """Makes a log where there is none, and locks it until the process ends.

    Two evaluations with one log would leave records of both under the settings of the later one.
    """
    name = os.path.realpath(path)
    if name in _held:
        return
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"{path} is being written by another `vkq eval`: wait for its end, or give another "
            "--out"
        ) from error
    except OSError:
        pass  # a file system or an operating system without locks
    _held.add(name)


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # of JSON or of UTF-8
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}:{number}: expected a JSON object, got {line[:60]!r}")
    return found


def _record(path: Path, number: int, fields: Mapping[str, Any]) -> Record:
    try:
        record = Record(**fields)
        check_fields(record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}:{number}: expected a record: {str(error)[:200]}") from error
    return record
