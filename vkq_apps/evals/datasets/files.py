"""Annotation files and pictures in a local folder, however deep they lie."""

import functools
import os
from pathlib import Path

__all__ = ["Pictures", "find_files"]


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """The files that match the first pattern that any file of the folder matches.

    Raises:
        FileNotFoundError: no folder, or no such file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist")
    for pattern in patterns:
        found = sorted(path for path in folder.rglob(pattern) if path.is_file())
        if found:
            return found
    raise FileNotFoundError(f"{folder}: expected a file {' or '.join(patterns)}, got none")


class Pictures:
    """Pictures by the names that annotations give them."""

    def __init__(self, folder: Path):
        """Looks nothing up yet."""
        self._folder = folder

    def find(self, *names: str) -> Path | None:
        """The file of one of these names: a path from the folder, or however deep it lies.

        Files in other folders than a name says count where they alone have its last part: of two,
        one would be another picture.
        """
        for name in names:
            path = self._folder / name
            if os.path.isfile(path):  # False, too, for a name that no file can have
                return path
        for name in names:
            named = Path(name)
            found = self._by_name.get(named.name, [])
            as_named = [path for path in found if path.parts[-len(named.parts) :] == named.parts]
            for some in (as_named, found):
                if len(some) == 1:
                    return some[0]
        return None

    @functools.cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        suffixes = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
        found: dict[str, list[Path]] = {}
        for path in sorted(self._folder.rglob("*")):
            if path.suffix.lower() in suffixes and path.is_file():
                found.setdefault(path.name, []).append(path)
        return found
