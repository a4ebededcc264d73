"""Ctrl-C that is heard wherever it falls."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vkq_apps.terminal.wakeup import heard

__all__ = ["first_interrupt_stops", "hear_interrupts"]

SECONDS_UNTIL_REPEATED = 0.05


@contextmanager
def hear_interrupts() -> Iterator[threading.Event]:
    """Makes Ctrl-C raise KeyboardInterrupt; gives an event that is set once it was pressed.

    Python drops an exception that a callback of the garbage collector (JAX has one) or a `__del__`
    raises, and C code that imports modules prints it: the interrupt is then raised again a moment
    later, and its traceback is not shown. The event tells of an interrupt that became another
    exception on its way, as in a callback that XLA calls.
    """
    pressed, listening = threading.Event(), threading.Event()
    main_thread = threading.main_thread()
    # A process that was told to ignore Ctrl-C (`nohup`, `&` in a script) goes on ignoring it.
    if (
        threading.current_thread() is not main_thread
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield pressed
        return

    def interrupt(number: int, frame: Any) -> None:
        heard()
        pressed.set()
        raise KeyboardInterrupt

    def repeat() -> None:
        if listening.is_set() and main_thread.ident is not None:
            signal.pthread_kill(main_thread.ident, signal.SIGINT)

    def raise_again() -> None:
        timer = threading.Timer(SECONDS_UNTIL_REPEATED, repeat)
        timer.daemon = True
        timer.start()

    unraisable_before, shown_before = sys.unraisablehook, sys.excepthook

    def drop(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            raise_again()
        else:
            unraisable_before(unraisable)

    def show(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            raise_again()
        else:
            shown_before(kind, error, traceback)

    def is_news(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, KeyboardInterrupt)

    # JAX logs the traceback of whatever a callback raises.
    printer = logging.lastResort
    if printer is not None:
        printer.addFilter(is_news)
    sys.unraisablehook, sys.excepthook = drop, show
    listening.set()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        listening.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook, sys.excepthook = unraisable_before, shown_before
        if printer is not None:
            printer.removeFilter(is_news)


@contextmanager
def first_interrupt_stops(notice: str) -> Iterator[threading.Event]:
    """Makes Ctrl-C set an event instead of ending the program; the next one ends it as before.

    Where Ctrl-C is ignored or nobody listens for it, that stays so.

    Args:
        notice: line that stderr gets at the first Ctrl-C.
    """
    stop = threading.Event()
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not main_thread or not callable(before):
        yield stop
        return

    def interrupt(number: int, frame: Any) -> None:
        heard()
        if stop.is_set():
            before(number, frame)
        stop.set()
        # Python's own streams may be in the middle of a write.
        os.write(2, f"\n{notice}\n".encode())

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
