"""Programs beside `vkq`, whose options are the fields of a dataclass."""

import dataclasses
from pathlib import Path

import pytest

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
