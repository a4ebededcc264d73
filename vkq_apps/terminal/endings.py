"""How a process ends with others; imports little, so that `vkq` starts at once."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

__all__ = ["at_failure", "closing_pool", "end_with_parent"]

SECONDS_BETWEEN_LOOKS = 0.5

at_failure: list[Callable[[int], None]] = []
"""Steps that a failed run still has to take: each gets the exit code once the failure is told."""


def end_with_parent() -> None:
    """Ends this process, whatever it does, soon after the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def closing_pool[P: Executor](pool: P) -> Iterator[P]:
    """The pool, ended after the block; work that has not begun is dropped.

    The block waits for work that still runs, unless it fails or hears Ctrl-C.
    """
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)
