"""The folder that a stopped run leaves for `--resume`, and the check of its settings."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vkq_apps.files.results_file import write_json

__all__ = ["check_part_folder", "check_settings", "kept_parts", "part_of"]

_SETTINGS = "settings.json"


def check_settings(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises ValueError, which names the first difference, unless both are equal.

    Args:
        path: of what is resumed.
        found: settings that it was made with, from JSON.
        asked: those of this run.
    """
    asked = json.loads(json.dumps(asked))
    for name in sorted(set(found) | set(asked)):
        if found.get(name) != asked.get(name):
            raise ValueError(
                f"--resume: {path} was made with other settings: {name} is "
                f"{str(found.get(name))[:80]!r} there and {str(asked.get(name))[:80]!r} here; "
                "give the same settings, or leave --resume out to start anew"
            )


def part_of(out_file: Path) -> Path:
    """The folder beside an output file for what is done before that can be written."""
    return out_file.with_name(f"{out_file.name}.part")


def check_part_folder(out_file: Path, command: str) -> dict[str, Any] | None:
    """The settings that a stopped run of `command` left; None: it left none.

    Raises:
        ValueError: something else than such a run's folder is in its place.
    """
    part = part_of(out_file)
    if not part.exists() and not part.is_symlink():
        return None
    settings = None
    if part.is_dir() and not part.is_symlink():
        # A kill may have come before the settings were written.
        if all(entry.name.startswith(".part-") for entry in part.iterdir()):
            return None
        with suppress(OSError, ValueError, RecursionError):
            settings = json.loads((part / _SETTINGS).read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or settings.get("command") != command:
        raise ValueError(
            f"{part} exists and was not made by `{command}`, which keeps there what it has done: "
            "give another --out, or move it away"
        )
    return settings


@contextmanager
def kept_parts(
    out_file: Path, command: str, settings: Mapping[str, Any], *, resume: bool
) -> Iterator[Path]:
    """A folder for what is done, which outlasts a kill, and goes once the block ends well.

    Args:
        out_file: the output that is written at the end of the block.
        command: that works towards it.
        settings: plain values on which all that is kept depends.
        resume: go on with what the folder holds; otherwise it is emptied.

    Raises:
        ValueError: the folder is not the command's, or is of other settings.
    """
    part, asked = part_of(out_file), {"command": command, **settings}
    found = check_part_folder(out_file, command)
    if resume and found is not None:
        check_settings(part, found, asked)
    else:
        _remove(part)
        write_json(part / _SETTINGS, asked)
    yield part
    _remove(part)


def _remove(part: Path) -> None:
    """Removes the folder, its settings last: what a kill leaves is still known as the command's."""
    for entry in part.iterdir() if part.exists() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _SETTINGS:
            entry.unlink()
    shutil.rmtree(part, ignore_errors=True)
