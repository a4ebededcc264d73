"""Ctrl-C while Python does not run, or waits for threads; processes whose parent is gone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vkq_apps.terminal import endings

LISTENING = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
# Locks a mutex of C twice: no signal wakes the main thread, as in XLA.
STUCK = """
import ctypes, threading
lock = ctypes.CDLL(None).pthread_mutex_lock
mutex = ctypes.create_string_buffer(64)
def run():
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
    lock(mutex), lock(mutex)
"""
COMPILING = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from vkq_apps.terminal.endings import closing_pool
def run():
    with closing_pool(ThreadPoolExecutor(1)) as pool:
        done = [pool.submit(time.sleep, 20) for _ in range(3)]
        print("ready", flush=True)
        done[0].result()
"""
PROGRAM = """
from vkq_apps.terminal import wakeup
from vkq_apps.terminal.program import end_with, run_program
wakeup.PATIENCE = 0.1
end_with(run_program("program", run))
"""


@pytest.fixture
def start():
    """Starts a program that has Ctrl-C as in a terminal, and waits until it says it is ready."""
    started = []

    def start(code):
        process = subprocess.Popen(
            [sys.executable, "-c", LISTENING + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_computation_that_hears_nothing_is_left_at_the_second_time(start):
    process = start(STUCK + PROGRAM)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "once more ends the program at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "program: interrupted\n"
    assert process.returncode == 130


def test_an_interrupted_program_does_not_wait_for_its_threads(start):
    process = start(COMPILING + PROGRAM)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "program: interrupted\n"
    assert process.returncode == 130


def test_a_process_ends_with_the_one_that_started_it(start):
    child = f"""
import time
from vkq_apps.terminal import endings
endings.SECONDS_BETWEEN_LOOKS = 0.02
endings.end_with_parent()
print("ready", flush=True)
time.sleep({60 * endings.SECONDS_BETWEEN_LOOKS})
"""
    parent = start(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid, file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    pid = int(parent.stderr.readline())
    parent.kill()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
