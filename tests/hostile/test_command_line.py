"""Every command with arguments that make no sense: exit code 2 and one clear line, at once."""

import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import pytest
import typer
from PIL import Image

import vkq_jax
from tests.hostile.conftest import LONGEST_ERROR
from vkq_apps.bench import commands, kernel, worker
from vkq_apps.cli.app import COMMANDS, Place
from vkq_apps.cli.main import main
from vkq_apps.files.outputs import check_record_place, check_stored_place
from vkq_apps.terminal import errors
from vkq_apps.terminal.program import run_program
from vkq_jax import messages

NUMBERS = ["0", "-1", "1", "3", "1.5", "nan", "inf", "-inf", "1e400", "9" * 30, "9" * 5000, "0x10"]
NUMBERS += ["1_0", "٣", " 2 ", "2,3", "1,,2", ",", "2147483648"]
TEXTS = [
    "",
    " ",
    "\n",
    "a\nb",
    "\udcff",
    "é\udc80",
    "[/red]",
    ":smile:",
    "\x1b[31m",
    "%s{}",
    "-",
    "~",
]
TEXTS += ["x" * 300, "y/" * 3000, "z" * 100_000, "null", "tiny", "none", "vkq-1bit", "🧾" * 90]
PLACES = ["/", ".", "..", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/x/y"]
PLACES += ["folder", "pipe", "empty", "loop", "picture.png", "rows.json", "missing/file"]
GOOD = {
    "--model": "tiny",
    "--image": "picture.png",
    "--prompt": "what is it?",
    "--out": "out",
    "--shape": "tiny",
    "results": "rows.json",
}


def run(capsys, arguments):
    """Exit code and stderr; checks what every run owes."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    code = exit_.value.code
    assert "Traceback" not in out + err
    if code == 2:
        (line,) = [line for line in err.splitlines() if line.startswith("vkq: error: ")]
        assert len(line) < LONGEST_ERROR, line
        assert line.isprintable(), line
        assert not line.startswith("vkq: error: unexpected "), line
        assert out == ""
    return code, err


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Odd things to name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    row = {"status": "measured", "shape": None, "batch": "x"}
    (tmp_path / "rows.json").write_text(json.dumps({"command": "vkq bench scaling", "rows": [row]}))
    return tmp_path


@pytest.fixture
def nothing_runs(monkeypatch):
    """No model is loaded and nothing is measured: good arguments end with an error that says so."""

    def refuse(*_, **__):
        raise ValueError("good arguments")

    monkeypatch.setattr("models.load", refuse)
    monkeypatch.setattr(commands, "run_groups", refuse)
    monkeypatch.setattr(commands, "bandwidth", lambda: 1.0)
    monkeypatch.setattr(commands.device_memory, "claim_memory", lambda: None)
    monkeypatch.setattr(kernel, "check", lambda launch: True)
    head = {"device": "d", "devices": 1, "commit": "c", "time": "t", "bandwidth": 1.0}
    monkeypatch.setattr(worker, "call", lambda *_, **__: dict(head))


def every_command():
    """The arguments that name each command, and its parameters, read off the command itself."""
    for name, place in COMMANDS.items():
        found = getattr(importlib.import_module(place.module), place.attribute)
        if isinstance(found, typer.Typer):
            group = typer.main.get_group(found)
            yield from (([name, inner], c.params) for inner, c in group.commands.items())
        else:
            single = typer.Typer(add_completion=False)
            single.command(name)(found)
            yield [name], typer.main.get_command(single).params


def hostile_arguments(rng):
    words, parameters = rng.choice(sorted(every_command(), key=lambda item: item[0]))
    arguments = list(words)
    for parameter in parameters:
        name = max(parameter.opts, key=len)
        if not parameter.required and rng.random() < 0.7:
            continue
        value = rng.choice(rng.choice([NUMBERS, TEXTS, PLACES]))
        if rng.random() < 0.6:
            value = GOOD.get(name, value)
        if parameter.param_type_name == "argument":
            arguments += [value]
        elif getattr(parameter, "is_flag", False):
            arguments += [name]
        else:
            arguments += [name, value] * rng.choice([1, 1, 1, 2])
    if rng.random() < 0.1:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice([*TEXTS, "--bogus"]))
    return arguments


def test_any_arguments_end_with_one_clear_line(cases, capsys, places, nothing_runs):
    refused = 0
    for case in cases(40):
        arguments = hostile_arguments(random.Random(f"command line/{case}"))
        code, err = run(capsys, arguments)
        assert code in (0, 2), (arguments, code, err)
        refused += code == 2
    assert refused


def test_every_whole_number_is_bounded(capsys, places, nothing_runs):
    """Seeds, too: NumPy and JAX take none of a hundred bits."""
    checked = 0
    for words, parameters in every_command():
        for parameter in parameters:
            if parameter.metavar == "N" and isinstance(parameter.min, int):
                needed = [p for p in parameters if p.required and p is not parameter]
                given = [part for p in needed for part in (p.opts[0], GOOD.get(p.opts[0], "x"))]
                code, err = run(capsys, [*words, *given, parameter.opts[0], "9" * 30])
                assert code == 2
                assert parameter.opts[0] in err
                checked += 1
    assert checked > 20


WRITERS = {
    "calibrate": ["--model", "tiny", "--out"],
    "calibrate-scores": ["--model", "tiny", "--image", "picture.png", "--prompt", "q", "--out"],
    "eval": ["--out"],
    "inspect": ["--model", "tiny", "--image", "picture.png", "--prompt", "q", "--out"],
    "bench explain": ["--shape", "tiny", "--out"],
    "bench quantize": ["--shape", "tiny", "--out"],
    "bench scaling": ["--shape", "tiny", "--out"],
    "bench throughput": ["--shape", "tiny", "--out"],
    "bench kernel": ["--out"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_takes_the_place_of_nothing_but_an_earlier_one(
    capsys, places, nothing_runs, monkeypatch, name
):
    monkeypatch.setattr(commands, "provenance", lambda: PROVENANCE)
    other = {**PROVENANCE, "command": "vkq bench other", "rows": []}
    contents = [b"a diary", b"{}", b"null", b"\x93NUMPY", json.dumps(other).encode()]
    contents.append((places / "picture.png").read_bytes())
    for content in contents:
        file = places / "mine"
        file.write_bytes(content)
        code, err = run(capsys, [*name.split(), *WRITERS[name], "mine"])
        assert code == 2
        assert "mine " in err
        assert file.read_bytes() == content
    names = {path.name for path in places.iterdir()}
    assert not {name for name in names if name.startswith((".part", "mine."))}


PROVENANCE = {"device": "d", "commit": "c", "time": "t"}


@pytest.mark.parametrize("command", ["vkq eval", "vkq bench scaling"])
def test_an_earlier_output_and_an_empty_file_may_be_written_over(tmp_path, command):
    (tmp_path / "file").write_text(json.dumps({**PROVENANCE, "command": command}))
    check_record_place(tmp_path / "file", command)
    for record in (PROVENANCE, {**PROVENANCE, "command": "vkq bench kernel"}):
        (tmp_path / "file").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=f"no output of `{command}`"):
            check_record_place(tmp_path / "file", command)
    (tmp_path / "file").write_text("")
    check_record_place(tmp_path / "file", command)
    check_stored_place(tmp_path / "file", "tables", "vkq calibrate")
    slope = jnp.ones((1, 1), jnp.float32)
    vkq_jax.save_score_map(tmp_path / "file", vkq_jax.ScoreMap(slope, slope))
    check_stored_place(tmp_path / "file", "score map", "vkq calibrate-scores")
    with pytest.raises(ValueError, match="no output of `vkq calibrate`"):
        check_stored_place(tmp_path / "file", "tables", "vkq calibrate")


def test_a_plot_does_not_take_the_place_of_its_own_figures(capsys, places, nothing_runs):
    code, err = run(capsys, ["bench", "scaling", "--shape", "tiny", "--out", "rows.png"])
    assert code == 2
    assert "expected another ending" in err
    assert not (places / "rows.png").exists()


@pytest.mark.parametrize(
    "failure", [AssertionError(), RuntimeError("Unable to initialize backend 'x'")]
)
def test_a_missing_device_is_named(monkeypatch, capsys, command, failure):
    def fail():
        raise failure

    command("import jax\ndef demo(): jax.default_backend()")
    monkeypatch.setattr("jax.default_backend", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "x")
    code, err = run(capsys, ["demo"])
    assert code == 2
    assert "JAX finds no device with JAX_PLATFORMS=x: expected cpu" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--compilation-cache", "", "demo"],
        ["calibrate", "--model", "tiny", "--images", "", "--out", "x"],
        ["calibrate", "--model", "tiny", "--out="],
        ["inspect", "--model", "tiny", "--image", "picture.png", "--prompt", "x", "--out", ""],
        ["eval", "--plots", ""],
        ["bench", "scaling", "--out="],
    ],
)
def test_an_empty_place_is_not_the_current_folder(capsys, places, arguments):
    """As `--out "$UNSET"` in a script gives it."""
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "expected the name of a f" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("columns", ["0", "1", "39", "1001", "9" * 30, "-1", "x", "²"])
def test_a_width_that_shows_nothing_is_forgotten(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert run_program("vkq", lambda: "COLUMNS" in os.environ) == 0
    monkeypatch.setenv("COLUMNS", "40")
    assert run_program("vkq", lambda: "COLUMNS" in os.environ) == 1


def test_a_deleted_current_folder_is_named(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, err = run(capsys, ["--version"])
    assert (code, err) == (2, "vkq: error: the current folder was deleted: change to another one\n")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Makes `vkq demo` a program of the test's own."""

    def make(program):
        name = f"program_{abs(hash(program))}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(program))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(COMMANDS, "demo", Place(name, "demo", "A test."))

    return make


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
