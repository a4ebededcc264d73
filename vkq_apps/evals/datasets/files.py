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
        """The file of one of these names, as a path from the folder or by its last part."""
        for name in names:
            path = self._folder / name
            if os.path.isfile(path):  # False, too, for a name that no file can have
                return path
        for name in names:
            found = self._by_name.get(Path(name).name)
            if found is not None:
                return found
        return None

    @functools.cached_property
    def _by_name(self) -> dict[str, Path]:
        suffixes = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
        paths = sorted(self._folder.rglob("*"), reverse=True)
        return {path.name: path for path in paths if path.suffix.lower() in suffixes}
