"""An output folder that appears complete or not at all."""

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vkq_jax.files.atomic_write import check_place, part_folder

__all__ = ["SUMMARY", "WRITTEN_BY", "check_replaceable", "complete_or_nothing"]

SUMMARY = "summary.json"
WRITTEN_BY = "vkq inspect"

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def check_replaceable(folder: Path) -> None:
    """Checks that `folder` can be written, and that only an earlier inspection would be lost.

    Raises:
        ValueError: `folder` is a file or cannot be made, or it holds anything that `vkq inspect`
            did not write.
    """
    check_place(Path(os.path.realpath(folder)), folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    found = {path.name for path in folder.iterdir()}
    foreign = sorted(found - _own_files(folder))
    if foreign:
        raise ValueError(
            f"folder {folder} is not empty and {WRITTEN_BY!r} did not write its {foreign[0]!r}; "
            f"choose another one"
        )


@contextmanager
def complete_or_nothing(folder: Path) -> Iterator[Path]:
    """Gives a folder to write to that becomes `folder` once all is written.

    The files must include a `SUMMARY` whose "written_by" is `WRITTEN_BY` and whose "files" lists
    them all. On an exception nothing is left behind, and an earlier result stays; a kill leaves the
    earlier result or the new one. Only outside Linux there is a moment between two renames in
    which neither has the name.

    Raises:
        ValueError: as for `check_replaceable`.
        OSError: writing fails, for example because the disk is full.
    """
    check_replaceable(folder)
    folder = Path(os.path.realpath(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with part_folder(folder) as parts:
            new = parts / "new"
            new.mkdir()
            yield new
            check_replaceable(folder)
            _swap(new, folder, parts / "old")
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error


def _swap(new: Path, folder: Path, old: Path) -> None:
    if folder.exists():
        if _exchange(new, folder):
            return
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:  # an interrupt too must not lose the earlier result
        if old.exists():
            old.rename(folder)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step; False where the operating or the file system has no such."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2  # Python has no function for it
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _own_files(folder: Path) -> set[str]:
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        ours = summary["written_by"] == WRITTEN_BY
        return set(summary["files"]) if ours else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
