"""Ends of a command: Ctrl-C, any exception, and output that is not taken, each in one line."""

import io
import json
import signal
import subprocess
import sys

import pytest

from tests.hostile.conftest import LONGEST_ERROR, run
from vkq_apps.cli.main import main
from vkq_apps.terminal import errors
from vkq_jax import messages

INTERRUPT = "import os, signal, time\ndef press(): os.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize(
    "program",
    [
        "press()\ndef demo(): print('goes on')",
        "def demo():\n    press()\n    print('goes on')",
        # Python drops what `__del__` raises, as it does in JAX's callback of the garbage collector.
        """class Dropped:
    def __del__(self):
        press()
        time.sleep(0)
def demo():
    x = Dropped()
    del x
    time.sleep(30)
    print('goes on')""",
        # XLA makes another exception of it.
        """import jax, jax.numpy as jnp
def demo():
    def callback(x):
        press()
        time.sleep(0)
        return x
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    jax.block_until_ready(jax.pure_callback(callback, shape, jnp.float32(1)))
    print('goes on')""",
        """def demo():
    try:
        press()
        time.sleep(9)
    except BaseException:
        pass""",
    ],
    ids=["in an import", "in the command", "in __del__", "in a JAX callback", "swallowed"],
)
@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_ends_with_130_and_one_line(capsys, command, program):
    command(INTERRUPT + program)
    code, err = run(capsys, ["demo"])
    assert code == 130
    assert err == "vkq: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_every_error_has_one_greatest_length():
    assert errors.LONGEST == messages.LONGEST < LONGEST_ERROR - len("vkq: error: ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("ValueError('x' * 9000 + 'do this')", "xxx [...] xxx"),
        ("RuntimeError('one\\n  two\\x1b[0m')", r"unexpected RuntimeError: one two\x1b[0m; `vkq "),
        ("RuntimeError('RESOURCE_EXHAUSTED: 5 GB')", "out of memory: RESOURCE_EXHAUSTED: 5 GB"),
        ("MemoryError()", "out of memory"),
        ("KeyError('k')", "unexpected KeyError: 'k'"),
        ("AssertionError()", "unexpected AssertionError: ; `vkq --traceback ...` shows where from"),
        ("EOFError('ends early')", "unexpected EOFError: ends early"),
        ("RecursionError('deep')", "unexpected RecursionError: deep"),
        ("OSError(28, 'No space left on device')", "writing failed: No space left on device"),
        ("OSError(2, 'No such file', 'a\\udcff')", r"a\udcff: No such file"),
        ("NotImplementedError('')", "unexpected NotImplementedError: "),
        ("ExceptionGroup('several', [ValueError('a')])", "unexpected ExceptionGroup: several"),
    ],
)
def test_any_exception_is_one_line(capsys, command, error, message):
    command(f"def demo(): raise {error}")
    with pytest.raises(SystemExit) as exit_:
        main(["demo"])
    (line,) = (
        capsys.readouterr().err.strip().splitlines()
    )  # typer puts a blank line before an Abort
    assert exit_.value.code == 2
    assert line.startswith("vkq: error: ")
    assert message in line
    assert len(line) < LONGEST_ERROR
    with pytest.raises(SystemExit):
        main(["--traceback", "demo"])


ANSWER = """
from vkq_apps.terminal.console import out, print_json
from vkq_apps.cli.ask import _show
def demo(json: bool = False):
    record = {"answer": "[red]5 € :smile: 🧾", "prompt": "[/]é", "answer_full_precision": None,
              "visual_tokens": 1, "visual_kv_bytes": 1, "visual_kv_bytes_full_precision": 2,
              "visual_kv_reduction": 0.5, "seconds": 1, "image": "a\\udcff.png"}
    _show(record, "none", json)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_no_answer_is_lost_to_an_encoding(monkeypatch, command, encoding):
    command(ANSWER)
    for flags in ([], ["--json"]):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        with pytest.raises(SystemExit) as exit_:
            main(["demo", *flags])
        assert exit_.value.code == 0
        text = written.getvalue().decode(encoding)
        if flags:
            record = json.loads(text)
            assert record["answer"] == "[red]5 € :smile: 🧾"
            assert record["image"] == "a\udcff.png"
        else:
            assert "[red]5 " in text
            assert " :smile: " in text
            assert "[/]" in text


def test_output_that_nobody_takes():
    """Real processes: Python flushes once more when it ends."""
    start = [sys.executable, "-m", "vkq_apps.cli.main"]

    def end(command):
        shell = f"{' '.join(start)} {command}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    assert end("--help | true; exit ${PIPESTATUS[0]}") == (1, "")
    code, err = end("--version >/dev/full")
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device" in err
    code, err = end("--version >&-")
    assert (code, err) == (
        2,
        "vkq: error: standard output is closed: nothing could be answered\n",
    )
    assert end("bogus 2>&-") == (2, "")
