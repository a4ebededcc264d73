"""Renders a checkpoint's chat template, within a time and a memory limit.

Templates are programs that come with a checkpoint: jinja2's sandbox keeps them from files and from
Python's insides, not from endless loops or from filling the memory. They run in a process of their
own (`models/prompts/template_worker.py`), kept for the next template and ended where one takes too
long.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["render"]

TIME_LIMIT = 5.0
"""Seconds for one rendering; real templates take milliseconds."""

_START_LIMIT = 120.0  # seconds until the process is ready: it imports transformers
_lock = threading.Lock()
_worker: "_Worker | None" = None


def render(template: str, messages: list[dict[str, Any]], special_tokens: dict[str, str]) -> str:
    """The prompt that a template writes, the beginning of the answer included.

    Args:
        template: jinja2, as in chat_template.jinja.
        messages: one conversation.
        special_tokens: what templates know by name, such as `bos_token`.

    Raises:
        ValueError: the template is wrong, refuses the messages, or takes too much memory.
        TimeoutError: it takes too long.
        ChildProcessError: the process that renders it ended.
    """
    global _worker
    request = {
        **special_tokens,
        "conversations": [messages],
        "chat_template": template,
        "add_generation_prompt": True,
    }
    with _lock:
        if _worker is None or not _worker.is_running():
            _worker = _Worker()
        try:
            answer = _worker.ask(request)
        except BaseException:
            _worker.end()
            _worker = None
            raise
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["text"]


class _Worker:
    """The process that renders, and the lines to and from it."""

    def __init__(self):
        file = Path(__file__).with_name("template_worker.py")
        self._process = subprocess.Popen(
            # -P: the script's folder, whose modules have common names, stays out of its path.
            [sys.executable, "-P", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        atexit.register(self.end)
        self._read(_START_LIMIT)

    def is_running(self) -> bool:
        """Whether the process still lives; a limit of memory or time may have ended it."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """The answer to one request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read(TIME_LIMIT)

    def end(self) -> None:
        """Ends the process, whatever it does."""
        atexit.unregister(self.end)
        with self._process:
            self._process.kill()

    def _read(self, seconds: float) -> dict[str, str]:
        assert self._process.stdout is not None
        # Killing the process ends the wait for its line.
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            in_time = timer.is_alive()
            timer.cancel()
        if not line:
            if in_time:
                raise ChildProcessError("the process that renders it ended without an answer")
            raise TimeoutError(f"it takes longer than {seconds:g} seconds")
        return json.loads(line)
