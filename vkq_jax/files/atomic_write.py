"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vkq_jax.messages import show_path
from vkq_jax.validation import as_path

try:
    import fcntl
except ImportError:  # Windows: folders stay unlocked there, and none is taken for a killed writer's
    fcntl = None

__all__ = ["atomic_write", "check_place", "check_writable", "lock", "part_folder", "reserved"]


def check_writable(path: str | os.PathLike[str]) -> Path:
    """The file that `atomic_write(path)` would write, symbolic links followed.

    Long work that ends with a file calls this first; it leaves nothing behind.

    Raises:
        ValueError: something other than a regular file is there, or no file can be made there.
    """
    path = as_path(path)
    # A link to a file is written through, as by `open`; replacing it would leave the file as it is.
    target = Path(os.path.realpath(path))
    if os.path.exists(path) and not path.is_file():
        raise ValueError(f"{show_path(path)}: expected a regular file, or none yet, to write to")
    check_place(target, path)
    return target


def check_place(target: Path, path: str | os.PathLike[str]) -> None:
    """Checks that a file or folder can be made at `target`, by making one like it for a moment.

    Permissions alone do not tell: a name may be too long, a file system read-only or virtual.

    Args:
        target: absolute path, symbolic links followed.
        path: the caller's name for it, for the error.

    Raises:
        ValueError: nothing can be made there.
    """
    # `realpath` leaves a link in place only where links lead in a circle.
    if circle := next(filter(os.path.islink, (target, *target.parents)), None):
        raise ValueError(
            f"{show_path(path)}: expected a place that can be written to, got {show_path(circle)}, "
            "a link that leads in a circle"
        )
    nearest = next((folder for folder in target.parents if os.path.exists(folder)), target)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"{show_path(path)}: expected a folder that can be written to, got {show_path(nearest)}"
        )
    try:
        with part_folder(target, nearest) as folder:
            trial = folder / target.relative_to(nearest)
            trial.parent.mkdir(parents=True, exist_ok=True)
            trial.touch()
    except OSError as error:
        raise ValueError(
            f"{show_path(path)}: expected a place that can be written to, got "
            f"{error.strerror!r} in {show_path(nearest)}"
        ) from error


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once the block ends without an error.

    Missing folders are made. The file has the mode that `open` would give it: an existing file's
    own, or by the umask.

    Raises:
        ValueError: as `check_writable` does.
        OSError: writing fails, for example because the disk is full; `path` is as it was before.
    """
    target = check_writable(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part_folder(target) as folder:
            part = folder / target.name
            part.touch()
            mode = (target if target.exists() else part).stat().st_mode
            yield part
            part.chmod(stat.S_IMODE(mode))  # some writers put a private file in its place
            os.replace(part, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{show_path(path)} cannot be written: {reason}") from error


@contextmanager
def part_folder(target: Path, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder for what will take the place of `target`; it is removed at the end.

    A kill leaves it behind. Therefore every writer locks its own folder for as long as it lives,
    and first removes those folders of the same target that nobody holds locked.

    Args:
        target: file or folder to be replaced.
        parent: where the folder is made. By default beside `target`, since a rename does not cross
            file systems.

    Raises:
        OSError: no folder can be made there.
    """
    parent = target.parent if parent is None else parent
    prefix = _prefix(target)
    for left in list(parent.glob(f"{prefix}*")):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        folder = _make_locked(prefix, parent, stack)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def reserved(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes from work towards the same file until the block ends.

    Raises:
        ValueError: another process has reserved it, something other than a folder has the name of
            the folder that reserves it, or as `check_writable` does.
    """
    target = check_writable(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f"{_prefix(target)}held"
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            try:
                stack.enter_context(_locked(folder))
            except FileNotFoundError:
                continue  # its last holder took it away before it was locked
            except BlockingIOError as error:
                raise ValueError(
                    f"{show_path(path)} is being written by another process: wait for its end, or "
                    "give another file"
                ) from error
            except OSError as error:  # a file system without locks, unless no folder is there
                if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
                    raise ValueError(
                        f"{show_path(path)} cannot be reserved: expected a folder or nothing as "
                        f"{show_path(folder)}, got a file or a link: delete it"
                    ) from error
            break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield


def _prefix(target: Path) -> str:
    """How the names of all folders for parts of `target` begin."""
    # The name itself may be too long to be part of another name.
    return f".part-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


def _make_locked(prefix: str, parent: Path, stack: contextlib.ExitStack) -> Path:
    """A new folder, locked until `stack` ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            stack.enter_context(_locked(folder))
        except (BlockingIOError, FileNotFoundError):
            continue  # another writer took the folder for a killed one's before it was locked
        except OSError:
            pass  # a file system without locks: there nobody removes a folder of another writer
        return folder


def lock(descriptor: int) -> None:
    """Locks an open file or folder until its descriptor is closed.

    Raises:
        BlockingIOError: another process has the lock.
        OSError: the file system or the operating system has no locks.
    """
    if fcntl is None:
        raise OSError("this operating system has no locks of files")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder.

    Raises:
        BlockingIOError: another has it.
        FileNotFoundError: the folder is gone, though another one may have its name by now.
        OSError: there are no locks.
    """
    if fcntl is None:
        raise OSError("this operating system has no locks of folders")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        lock(descriptor)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        yield
    finally:
        os.close(descriptor)
