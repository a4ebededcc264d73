"""The command line: help, completion, and one clear line for bad input."""

import importlib
import json
import resource
import subprocess
import sys

import pytest
import typer

from tests.support.command import run
from vkq_apps.cli.app import COMMANDS

ASK = ["generate", "--model", "tiny", "--image", "x", "--prompt", "y"]


def every_command():
    """The arguments that name each command, the groups included."""
    for name, place in COMMANDS.items():
        yield [name]
        found = getattr(importlib.import_module(place.module), place.attribute)
        if isinstance(found, typer.Typer):
            yield from ([name, inner] for inner in typer.main.get_group(found).commands)


def test_help_and_version_import_nothing_that_takes_long():
    slow = ("jax", "numpy", "models", "vkq_jax", "transformers", "huggingface_hub", "PIL")
    program = "import sys; from vkq_apps.cli.main import main\n"
    program += "try: main(sys.argv[1:])\n"
    program += f"finally: print([name for name in {slow} if name in sys.modules])"
    for arguments, found in ((["--help"], "generate"), (["--version"], "vkq-jax ")):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert found in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


def test_help_takes_less_than_half_a_second():
    """Processor time, and the best of a few runs: other processes make each of them slower."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vkq_apps.cli.main", "--help"], capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.5 for _ in range(8))


def test_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], *every_command()):
        code, out, _ = run(capsys, *words, "--help")
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
        assert "…" not in out or words == ["eval"]  # names in it are longer than a column
    _, out, _ = run(capsys)
    for name, place in COMMANDS.items():
        assert f"{name} " in out
        assert place.summary in out  # in one line


def test_a_shell_completes_commands_and_options(capsys, monkeypatch):
    for words, completed in (("vkq gen", "generate"), ("vkq bench --", "--help")):
        monkeypatch.setenv("_VKQ_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        code, out, _ = run(capsys)
        assert (code, out.split()) == (0, [completed])


def test_clips_are_refused_before_a_model_without_video_is_loaded(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("models.load", None)
    record = {"video": str(tmp_path), "question": "q", "answer": "a"}
    (tmp_path / "own.jsonl").write_text(json.dumps(record))
    code, _, err = run(capsys, "eval", "--data", f"jsonl={tmp_path / 'own.jsonl'}")
    assert code == 2
    assert "llava models take pictures alone" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--modle", "tiny"], "No such option: --modle"),
        (["generate", "--model", "tiny", "--prompt", "y"], "expected a picture or a clip"),
        ([*ASK, "--num-frames", "2"], "--num-frames=2: expected a clip (--video) beside it"),
        ([*ASK[:3], "--video", "x", "--prompt", "y"], "llava models take pictures alone"),
        (["chat", "--model", "tiny", "--num-frames", "2"], "llava models take pictures alone"),
        (["inspect", *ASK[1:3], "--prompt", "y", "--out", "z"], "expected a picture or a clip"),
        (["inspect", *ASK[1:3], "--video", "x", "--prompt", "y", "--out", "z"], "pictures alone"),
        (["calibrate-scores", *ASK[1:3], "--prompt", "y", "--out", "z"], "a picture or a clip"),
        (["nonsense"], "No such command"),
        (["chat", "--model", "tiny", "--quant", "vkq-1bit/9=none"], "expected layers in [-6, 6)"),
        (["demo", "--quant"], "'--quant' requires an argument; see `vkq demo --help`"),
        (["generat"], "Did you mean 'generate'? See `vkq --help`"),
        (
            ["calibrate", "--model", "tiny", "--images", "/none", "--out", "z"],
            "/none does not exist",
        ),
        (["calibrate", "--model", "tiny", "--quant", ","], "--quant: expected all, or some of"),
        (
            ["calibrate", "--model", "tiny", "--implementation", "fast"],
            "implementation must be auto, mosaic_gpu, xla, reference, got 'fast'",
        ),
        (["eval", "--quant", ","], "--quant: expected names of presets with commas between"),
        (["generate", "--model", "tiny", "--image", "/", "--prompt", "y"], "got the folder /"),
        (["demo", "--quant", "vkq-7bit"], "unknown preset 'vkq-7bit'"),
        (["generate", "--model", "/none", "--image", "x", "--prompt", "y"], "/none does not exist"),
        (["generate", "--model", "tiny", "--image", "/x.png", "--prompt", "y"], "/x.png"),
        (["eval", "--quantize-at", "never"], "'never' is not one of"),
        (
            ["generate", "--model", "tiny", "--image", "x", "--prompt", "y", "--score-map", "/x"],
            "no score map file at /x",
        ),
        (
            [*ASK, "--max-new-tokens", "100000000"],
            "--max-new-tokens: expected at most 448, since the model's context holds 1024 tokens, "
            "576 of them for the prompt; got 100000000",
        ),
        ([*ASK, "--max-new-tokens", "99999999999"], "expected at most 2147483647"),
        ([*ASK, "--seed", "1"], "--seed: expected a --temperature above 0 beside it"),
        ([*ASK, "--top-k", "3", "--temperature", "0"], "since only random draws heed it; got 0.0"),
        ([*ASK, "--temperature", "-1"], "temperature"),
        ([*ASK, "--text-bits", "4"], "'--text-bits': expected 8, got 4"),
        ([*ASK, "--temperature", "1", "--top-p", "2"], "top_p"),
        (
            ["generate", "--model", "/never loaded", "--image", "x", "--prompt", " "],
            "--prompt: expected a question, or a prompt with <image>, got ' '",
        ),
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("vkq: error: ")]
    assert message in line


def test_without_a_command_it_shows_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "demo" in out
