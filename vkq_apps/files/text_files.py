"""Text files from outside."""

import io
import os
import stat
import time
from pathlib import Path

from vkq_jax.files.regular_file import open_at_once

__all__ = ["read_text", "with_home"]

_WAIT = 5.0  # seconds for somebody to write to a pipe


def read_text(path: Path) -> str:
    """The content of a text file or a pipe, without a byte order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8 (with its line), a folder, a device, which may never end, or a
            pipe to which nobody writes.
    """
    try:
        with open(path, "rb", buffering=0, opener=open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise ValueError(f"{path}: expected a text file, got a device")
            content = _read_pipe(path, file) if stat.S_ISFIFO(mode) else file.readall()
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: expected UTF-8 text: {error}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path}: expected a file, got a folder") from error


def with_home(name: str) -> Path:
    """The path of a name whose `~` no shell has replaced; that of an unknown user stays."""
    return Path(os.path.expanduser(name))  # pathlib's raises where there is no such user


def _read_pipe(path: Path, pipe: io.FileIO) -> bytes:
    """All that is written to a pipe."""
    end = time.monotonic() + _WAIT
    while (first := pipe.read(1)) == b"":  # None: there is a writer, who has written nothing
        if time.monotonic() > end:
            raise ValueError(f"{path}: expected a text file, got a pipe that nobody writes to")
        time.sleep(0.02)
    os.set_blocking(pipe.fileno(), True)
    return (first or b"") + pipe.readall()
