"""Text files from outside."""

import io
import os
import time
from pathlib import Path

__all__ = ["read_text"]

_WAIT = 5.0  # seconds for somebody to write to a pipe


def read_text(path: Path) -> str:
    """The content of a text file or a pipe, without a byte order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8 (with its line), a folder, a device, which may never end, or a
            pipe to which nobody writes.
    """
    if path.is_char_device() or path.is_block_device():
        raise ValueError(f"{path}: expected a text file, got a device")
    try:
        content = _read_pipe(path) if path.is_fifo() else path.read_bytes()
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: expected UTF-8 text: {error}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path}: expected a file, got a folder") from error


def _read_pipe(path: Path) -> bytes:
    """All that is written to a pipe; opening one as a file waits for a writer for ever."""
    end = time.monotonic() + _WAIT
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as pipe:
        while (first := pipe.read(1)) == b"":  # None: there is a writer, who has written nothing
            if time.monotonic() > end:
                raise ValueError(f"{path}: expected a text file, got a pipe that nobody writes to")
            time.sleep(0.02)
        os.set_blocking(pipe.fileno(), True)
        return (first or b"") + pipe.readall()
