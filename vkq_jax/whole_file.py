"""Files that appear whole or not at all."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_writable", "whole_file"]


def check_writable(path: str | os.PathLike[str]) -> Path:
    """The file that `whole_file(path)` would write, symbolic links followed; writes nothing.

    For what takes long and ends with a file: called first, it spares the work.

    Raises:
        ValueError: something other than a regular file is there, or no file can be made there.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a regular file, or none yet, to write to")
    # A link to a file is written through, as by `open`; replacing it would leave the file as it is.
    target = Path(os.path.realpath(path))
    nearest = next(folder for folder in target.parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: expected a folder that can be written to, got {nearest}")
    return target


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once the block ends without an error.

    Missing folders are made. The file has the mode that `open` would give it: an existing file's
    own, or by the umask. Raises as `check_writable` does.
    """
    target = check_writable(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a rename does not cross file systems.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as folder:
        part = Path(folder) / target.name
        part.touch()
        mode = (target if target.exists() else part).stat().st_mode
        yield part
        part.chmod(stat.S_IMODE(mode))  # some writers put a private file in its place
        os.replace(part, target)
