"""The place of a command's output file: nothing but an earlier output may be lost there."""

import json
from pathlib import Path
from typing import Literal

from vkq_jax.files.atomic_write import check_writable
from vkq_jax.files.persistence import is_written_here

__all__ = ["check_record_place", "check_stored_place"]


def check_record_place(path: Path, command: str) -> None:
    """Checks that a command can write its JSON record to `path`.

    Raises:
        ValueError: no file can be made there, or one is there that the command did not write.
    """
    check_writable(path)
    if not _is_empty(path) and not _is_record(path, command):
        raise _foreign(path, command)


def check_stored_place(path: Path, kind: Literal["score map", "tables"], command: str) -> None:
    """As `check_record_place`, for a file of `vkq_jax.save_score_map` or `vkq_jax.save_tables`."""
    check_writable(path)
    if not _is_empty(path) and not is_written_here(path, kind):
        raise _foreign(path, command)


def _is_empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def _is_record(path: Path, command: str) -> bool:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("command") == command


def _foreign(path: Path, command: str) -> ValueError:
    return ValueError(
        f"{path} exists and is no output of `{command}`, which would take its place: give another "
        "name, or delete it"
    )
