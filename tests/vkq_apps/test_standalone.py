"""Programs beside `vkq`, whose options are the fields of a dataclass."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest

from vkq_apps.terminal.program import run_module
from vkq_apps.terminal.standalone import argument, option, run_standalone
from vkq_apps.training import train
from vkq_apps.training.options import TrainOptions


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the program."""

    folder: Path = argument(help="A folder.")
    steps: int = option(7, help="Steps.", min=1)
    name: str | None = option(None, help="A name.")
    fast: bool = option(False, help="Fast.")


def read(*arguments, run=None, **extra):
    found = []
    code = run_standalone(
        Options, run or found.append, module="a.b", help="Help.", arguments=[*arguments], **extra
    )
    return code, found


def test_options_are_the_fields():
    assert read("x") == (0, [Options(Path("x"))])
    code, (options,) = read("x", "--steps", "3", "--fast", "--name", "n")
    assert code == 0
    assert dataclasses.astuple(options) == (Path("x"), 3, "n", True)


def test_given_options_go_before_overrides_and_overrides_before_defaults():
    def overrides(given):
        return {"steps": 2, "name": "small"} if given.get("fast") else {}

    _, (options,) = read("x", "--fast", "--name", "own", overrides=overrides)
    assert (options.steps, options.name) == (2, "own")
    _, (options,) = read("x", overrides=overrides)
    assert (options.steps, options.name) == (7, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["x", "--steps", "0"], "--steps"),
        (["x", "--steps", "2", "--steps", "3"], "'--steps': expected once, got 2 times"),
        ([""], "expected the name of a file or folder, got an empty text"),
        (["x", "--bogus"], "No such option: --bogus; see `python -m a.b --help`"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    code, found = read(*arguments)
    assert (code, found) == (2, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a.b: error: ")
    assert message in line


def test_a_failure_is_one_line_and_help_is_none(capsys):
    def fail(options):
        raise ValueError("expected more")

    assert read("x", run=fail)[0] == 2
    assert capsys.readouterr().err == "a.b: error: expected more\n"
    assert read("--help")[0] == 0
    assert "--steps" in capsys.readouterr().out


def test_a_smoke_training_is_small_but_for_what_is_given(monkeypatch):
    found = []
    monkeypatch.setattr(train, "run", found.append)
    assert train.main(["--smoke", "--steps", "5"]) == 0
    assert train.main([]) == 0
    small, whole = found
    assert (small.steps, small.workers, small.unroll) == (5, 0, False)
    assert whole == TrainOptions()


PRESS = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
MAIN = """
from tests.vkq_apps.test_standalone import Options, press
from vkq_apps.terminal.standalone import run_standalone
def main(): return run_standalone(Options, press, module="a.b", help=None, arguments=["x"])
"""


def press(options):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_is_one_line(capsys):
    assert read("x", run=press)[0] == 130
    assert capsys.readouterr().err == "a.b: interrupted\n"


@pytest.mark.parametrize("program", [PRESS, MAIN], ids=["in the imports", "in the command"])
@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_in_a_module_that_runs_is_one_line(capsys, monkeypatch, tmp_path, program):
    name = f"program_{len(program)}"
    (tmp_path / f"{name}.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run_module(name)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == f"{name}: interrupted\n"
    sys.modules.pop(name, None)


def test_a_module_whose_imports_fail_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        run_module("vkq_apps.no_such")
    assert exit_.value.code == 2
    assert "vkq_apps.no_such is not installed" in capsys.readouterr().err


def test_a_training_says_what_contradicts_what_is_there(capsys, tmp_path):
    assert train.main(["--smoke", "--resume", "--out", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("state.safetensors does not exist: leave out --resume")
    assert not list(tmp_path.iterdir())
