"""Files from outside, opened without waiting for what took their place."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

__all__ = ["open_at_once", "open_regular", "open_safetensors"]


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading its bytes.

    `open` waits for ever where a pipe took the place of a file, even one that was checked before.

    Raises:
        OSError: as `open` does.
        ValueError: a folder, a pipe, a device or the like; callers name the file.
    """
    return open(path, "rb", opener=_open_file)


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open` that waits for no writer of a pipe; returns the descriptor."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open_file(path: str, flags: int) -> int:
    descriptor = open_at_once(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("expected a file, got a folder, a pipe, a device or the like")
    return descriptor


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """`safetensors.safe_open` with NumPy's arrays, of a file as `open_regular` opens it.

    Raises:
        OSError: as `open` does.
        SafetensorError: no safetensors file, or a broken one.
    """
    try:
        stream = open_regular(path)
    except ValueError as error:
        raise SafetensorError(str(error)) from error
    with stream:
        # The library takes paths alone; this one is that of the open file.
        own = f"/dev/fd/{stream.fileno()}"
        with safe_open(own if os.path.exists(own) else path, framework="np") as file:
            yield file
