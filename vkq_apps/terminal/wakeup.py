"""Ctrl-C while Python cannot hear it: XLA compiles or computes, for a minute perhaps."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["heard", "watch_interrupts"]

PATIENCE = 1.0  # seconds until somebody who pressed Ctrl-C wonders
_LATE = 0.5  # seconds that the watching thread may get a signal later than its handler
_NOTICE = b"\nCtrl-C is heard when this computation ends; once more ends the program at once\n"

_last_heard = 0.0


def heard() -> None:
    """Every handler of Ctrl-C says by this that the main thread runs Python."""
    global _last_heard
    _last_heard = time.monotonic()


@contextmanager
def watch_interrupts(ended: str) -> Iterator[None]:
    """While no handler hears Ctrl-C, the second one ends the program, with code 130.

    No file is half written then: files appear whole, see `vkq_jax.files.atomic_write`.

    Args:
        ended: line that stderr gets at such an end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, f"{ended}\n".encode()), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, ended: bytes) -> None:
    """Reads the number of each signal, which Python's C code writes whatever runs."""
    waiting_since = None
    while number := os.read(reader, 1):
        if number[0] != signal.SIGINT:
            continue
        pressed = time.monotonic()
        if waiting_since is not None and _last_heard < waiting_since:
            os.write(2, ended)
            os._exit(130)
        waiting_since = pressed - _LATE
        while _last_heard < waiting_since:
            if time.monotonic() > pressed + PATIENCE:
                os.write(2, _NOTICE)
                break
            time.sleep(0.01)
