"""Text files from outside."""

from pathlib import Path

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """The content of a text file or a pipe, without a byte order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8 (with its line), a folder, or a device, which may never end.
    """
    if path.is_char_device() or path.is_block_device():
        raise ValueError(f"{path}: expected a text file, got a device")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: expected UTF-8 text: {error}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path}: expected a file, got a folder") from error
