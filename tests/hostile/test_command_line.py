"""Every command with arguments that make no sense: exit code 2 and one clear line, at once."""

import importlib
import json
import os
import random
from pathlib import Path

import jax.numpy as jnp
import pytest
import typer
from PIL import Image

import vkq_jax
from tests.hostile.conftest import run
from vkq_apps.bench import commands, kernel, worker
from vkq_apps.cli.app import COMMANDS, load_command
from vkq_apps.files.outputs import check_record_place, check_stored_place
from vkq_apps.terminal.program import run_program

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
            yield [name], load_command(name).params


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
            times = rng.choice([1, 1, 2]) if parameter.multiple or rng.random() < 0.03 else 1
            arguments += [name, value] * times
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
            if parameter.metavar == "N" and isinstance(getattr(parameter, "min", None), int):
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


def options_of_all_commands():
    """The arguments that name each command, and each option, those of `vkq` itself included."""
    yield [], "--compilation-cache", "FOLDER", False
    for words, parameters in every_command():
        for parameter in parameters:
            if not getattr(parameter, "is_flag", False):
                yield words, parameter.opts[-1], parameter.metavar, parameter.multiple


def test_an_empty_place_is_not_the_current_folder(capsys, places):
    """As `--out "$UNSET"` in a script gives it."""
    before = sorted(Path().iterdir())
    checked = 0
    for words, option, metavar, _ in options_of_all_commands():
        if str(metavar).startswith(("FILE", "FOLDER")):
            for given in [[option, ""], [f"{option}="]] if option.startswith("-") else [[""]]:
                code, err = run(capsys, [*words, *given])
                assert code == 2
                assert "expected the name of a file or folder, got an empty text" in err, words
                assert option.lstrip("-").lower() in err.lower() or metavar in err
                checked += 1
    assert checked > 50
    assert sorted(Path().iterdir()) == before


def test_an_option_of_one_value_is_given_once(capsys, places):
    checked = 0
    for words, option, _, multiple in options_of_all_commands():
        if option.startswith("-") and not multiple:
            code, err = run(capsys, [*words, option, "1", f"{option}=2"])
            assert code == 2
            assert f"Invalid value for '{option}': expected once, got 2 times; see `vkq" in err
            checked += 1
    assert checked > 100
    code, err = run(capsys, ["generate", "--compare", "--no-compare"])
    assert code == 2
    assert "expected once" in err


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
