"""Renders chat templates in a process of its own, which `models.prompts.chat_template` starts.

Reads one JSON object a line, the arguments of transformers' `render_jinja_template`, and answers
each with one line, `{"text": ...}` or `{"error": ...}`. The first line says that it is ready.
"""

import json
import os
import signal
import sys

# Ctrl-C goes to all processes of a terminal; the one that started this process decides what ends.
signal.signal(signal.SIGINT, signal.SIG_IGN)

_MEMORY = 2**30  # bytes that a template may take
_LONGEST_TEXT = 2**22  # characters


def _main() -> None:
    # Whatever else is printed goes to stderr: stdout holds answers only.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    print(json.dumps({"text": ""}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            [text], _ = render_jinja_template(**json.loads(line))
            if len(text) > _LONGEST_TEXT:
                raise ValueError(f"it writes {len(text)} characters, of at most {_LONGEST_TEXT}")
            answer = {"text": text}
        # Templates raise what Python has, and jinja2's own.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".removesuffix(": ")[:500]}
        print(json.dumps(answer), file=answers, flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


_main()
