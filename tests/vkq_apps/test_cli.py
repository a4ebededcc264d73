"""The command line: what programs and people get, and one clear line for bad input."""

import dataclasses
import importlib
import json
import os
import re
import resource
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from PIL import Image

import vkq_jax
from models.generation.context import context_length
from models.generation.room import check_text_fits
from models.layers.rope import RopeConfig, RopeKind
from tests.support.command import run
from tests.support.tiny_llava import CONFIG, WINDOWED, tiny_model
from vkq_apps.cli.app import COMMANDS
from vkq_apps.cli.room import check_room
from vkq_apps.cli.sample_folder import read_prompts

LINEAR = RopeConfig(head_dim=16, max_length=512, kind=RopeKind.LINEAR, factor=4.0)
ASK = ["generate", "--model", "tiny", "--image", "x", "--prompt", "y"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(path)
    return str(path)


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
        assert "…" not in out or words == ["eval"]  # whose file names are longer than a column
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


def test_demo_reads_the_receipt_from_one_bit(capsys):
    code, out, _ = run(capsys, "demo", "--json")
    record = json.loads(out)
    assert code == 0
    assert set(record) == {
        "image",
        "prompt",
        "answer",
        "answer_full_precision",
        "visual_tokens",
        "visual_kv_bytes",
        "visual_kv_bytes_full_precision",
        "visual_kv_reduction",
        "seconds",
    }
    assert record["answer"] == record["answer_full_precision"] == "$385.16"
    assert record["visual_tokens"] == 576
    assert record["visual_kv_reduction"] >= 0.9


def test_generate_takes_codes_by_layer_and_text_in_8_bits(capsys, picture):
    options = ["--model", "tiny", "--image", picture, "--prompt", "what is this?", "--json"]
    quant = "minmax-1bit/0=none/-1=none"
    options += ["--quant", quant, "--text-bits", "8", "--max-new-tokens", "1", "--no-compare"]
    code, out, _ = run(capsys, "generate", *options)
    record = json.loads(out)
    assert code == 0
    assert record["quant"] == quant
    # 6 layers, 4 KV heads of 64 channels, a bank of 64 tokens, scales in bfloat16.
    assert record["text_bits"] == 8
    assert record["text_kv_bytes"] == 2 * 6 * 4 * 64 * (64 + 2)
    # Four of six layers in about 1 bit.
    assert 0.6 < record["visual_kv_reduction"] < 4 / 6


def test_generate_draws_at_random_by_the_seed(capsys, picture):
    ask = ["generate", "--model", "tiny", "--image", picture, "--prompt", "what is it?", "--json"]
    ask += ["--max-new-tokens", "3", "--no-compare", "--temperature", "5", "--top-k", "300"]
    answers = []
    for seed in ("1", "1", "2"):
        code, out, _ = run(capsys, *ask, "--top-p", "0.99", "--seed", seed)
        assert code == 0
        answers.append(json.loads(out)["answer"])
    assert json.loads(out)["sampling"] == {
        "temperature": 5.0,
        "top_k": 300,
        "top_p": 0.99,
        "seed": 2,
    }
    assert answers[0] == answers[1] != answers[2]


def test_generate_shows_a_table_to_people(capsys, picture):
    code, out, err = run(
        capsys, "generate", "--model", "tiny", "--image", picture,
        "--prompt", "describe the picture", "--max-new-tokens", "2", "--no-compare",
    )  # fmt: skip
    assert code == 0
    assert "vkq-1bit" in out
    assert "576 visual tokens" in out
    assert "in all" in err


def test_calibrate_writes_a_map_that_generate_takes(capsys, tmp_path, picture):
    path = str(tmp_path / "new" / "map.safetensors")
    code, out, _ = run(
        capsys, "calibrate-scores", "--model", "tiny", "--image", picture, "--image", picture,
        "--prompt", "describe the picture", "--max-new-tokens", "2", "--out", path, "--json",
    )  # fmt: skip
    record = json.loads(out)
    assert code == 0
    assert record["sample_prompts"] == 2
    score_map = vkq_jax.load_score_map(path)
    assert score_map.slope.shape == (record["layers"], record["query_heads"])
    assert record["heads_left_alone"] == (score_map.slope == 1).sum()

    ask = ["generate", "--model", "tiny", "--image", picture, "--prompt", "describe the picture"]
    ask += ["--max-new-tokens", "2", "--no-compare", "--score-map"]
    code, out, _ = run(capsys, *ask, path, "--json")  # the map knows its codes
    assert code == 0
    record = json.loads(out)
    assert (record["quant"], record["score_map"]) == ("calibquant-1bit", path)
    code, _, err = run(capsys, *ask, path, "--quant", "vkq-1bit", "--model", "/never loaded")
    assert code == 2
    assert "score_map was calibrated with other codes" in err.splitlines()[-1]
    vkq_jax.save_score_map(path, jax.tree.map(lambda x: x[:1], score_map))
    code, _, err = run(capsys, *ask, path)
    assert code == 2
    assert "score_map.slope: expected [layers, query heads]" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("config", "slopes", "ending"),
    [
        (CONFIG, [[0.5, 0.25, 0.75]], "mean slope 0.50"),
        (
            CONFIG,
            [[1.0, 1.0, 0.25]],
            "2 of 1 x 3 heads kept the identity: their scores span less than tau2 - tau1 = 3",
        ),
        (WINDOWED, [[1.0, 0.5, 0.25]], "= 3, or their sliding window hides the pictures"),
    ],
)
def test_calibrate_says_which_heads_it_left_alone(
    capsys, monkeypatch, tmp_path, picture, config, slopes, ending
):
    made = vkq_jax.ScoreMap(jnp.asarray(slopes), jnp.zeros((1, 3)))
    monkeypatch.setattr("models.load", lambda folder, **options: tiny_model(config=config))
    monkeypatch.setattr("models.calibrate_scores", lambda model, inputs, **options: made)
    code, out, _ = run(
        capsys, "calibrate-scores", "--model", "tiny", "--image", picture, "--prompt", "y",
        "--out", str(tmp_path / "map"),
    )  # fmt: skip
    assert code == 0
    assert " ".join(out.split()).endswith(ending)


def test_calibrate_checks_before_it_loads_a_model(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    ask = ["calibrate-scores", "--model", "/never loaded", "--image", "x"]
    for options, message in (
        (["--prompt", "y", "--out", str(tmp_path)], f"{tmp_path}: expected a regular file"),
        (["--prompt", "y", "--out", str(tmp_path / "pipe")], "pipe: expected a regular file"),
        (["--prompt", "y", "--out", str(tmp_path / "file" / "x")], "expected a folder that can"),
        (["--prompt", "y", "--prompt", " ", "--out", "x"], "--prompt: expected a question"),
        (
            ["--prompt", "y", "--out", "x", "--quant", "vkq-1bit"],
            "a preset that calibrates scores (calibquant-1bit), got 'vkq-1bit'",
        ),
    ):
        code, _, err = run(capsys, *ask, *options)
        assert code == 2
        assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-new-tokens", "100000000"], "--max-new-tokens: expected at most 448"),
        ([], "broken.png"),
    ],
)
def test_calibrating_codes_checks_room_and_pictures_before_it_loads_a_model(
    capsys, monkeypatch, tmp_path, options, message
):
    monkeypatch.setattr("models.load", None)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    ask = ["calibrate", "--model", "tiny", "--images", str(tmp_path), "--out", str(tmp_path / "x")]
    code, _, err = run(capsys, *ask, *options)
    assert code == 2
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "taken", "layers_apart"), [("auto", None, None), ("xla", "xla", False)]
)
def test_codes_are_calibrated_by_the_implementation_that_is_asked_for(
    capsys, monkeypatch, tmp_path, name, taken, layers_apart
):
    asked: dict[str, Any] = {}

    def calibrate_codes(model, inputs, **options):
        raise ValueError(f"calibrated by {options['implementation']}")

    monkeypatch.setattr("models.load", lambda folder, **options: asked.update(options))
    monkeypatch.setattr("models.calibrate_codes", calibrate_codes)
    ask = ["calibrate", "--model", "tiny", "--out", str(tmp_path / "x")]
    code, _, err = run(capsys, *ask, "--samples", "1", "--implementation", name)
    assert code == 2
    assert err.splitlines()[-1] == f"vkq: error: calibrated by {taken}"
    assert asked["layers_apart"] is layers_apart


def test_clips_are_refused_before_a_model_without_video_is_loaded(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("models.load", None)
    record = {"video": str(tmp_path), "question": "q", "answer": "a"}
    (tmp_path / "own.jsonl").write_text(json.dumps(record))
    code, _, err = run(capsys, "eval", "--data", f"jsonl={tmp_path / 'own.jsonl'}")
    assert code == 2
    assert "llava models take pictures alone" in err.splitlines()[-1]


def test_questions_of_a_file_as_windows_writes_it(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("What is it?\r\n\r\nWhere?\r\n", encoding="utf-8-sig", newline="")
    assert read_prompts(file) == ["What is it?", "Where?"]


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


def test_an_unreadable_image_and_more_images_than_the_context_holds(capsys, tmp_path, picture):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    ask = ["generate", "--model", "tiny", "--prompt", "USER: <image> hi ASSISTANT:"]
    code, _, err = run(capsys, *ask, "--image", str(broken))
    assert code == 2
    assert "broken.png" in err.splitlines()[-1]
    code, _, err = run(capsys, *ask, "--image", picture, "--image", picture)
    assert code == 2
    assert "the prompt is too long: 1152 visual and 0 text tokens" in err.splitlines()[-1]


def test_an_answer_longer_than_the_context_left_by_the_prompt(capsys, picture, monkeypatch):
    """Before loading the prompt's text is not known; behind it, it is."""
    monkeypatch.setattr("models.stream", None)
    ask = ["generate", "--model", "tiny", "--image", picture, "--prompt", "what is it?"]
    code, _, err = run(capsys, *ask, "--max-new-tokens", "440")
    assert code == 2
    assert "the model's context holds 1024 tokens, 58" in err.splitlines()[-1]


def test_the_room_of_a_model(monkeypatch):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, rope=LINEAR))
    assert context_length(CONFIG) == 512
    assert context_length(config) == 2048
    check_room(config, visual=16, text=1000, max_new_tokens=1032)
    with pytest.raises(ValueError, match="expected at most 1032, since the model's context holds"):
        check_room(config, visual=16, text=1000, max_new_tokens=1033)
    with pytest.raises(ValueError, match="the prompt is too long: 2048 visual and 0 text tokens"):
        check_room(config, visual=2048, text=0, max_new_tokens=1)
    check_room(config, visual=2048, text=0, max_new_tokens=0)
    one = 2 * 2 * 3 * 2 * 16  # keys and values, two bytes, layers, heads, channels
    monkeypatch.setattr("models.generation.room.free_memory", lambda devices: 100 * one)
    check_room(config, visual=1000, text=60, max_new_tokens=40)
    with pytest.raises(ValueError, match=r"--max-new-tokens: .* at most 39, since 101 text tokens"):
        check_room(config, visual=1000, text=61, max_new_tokens=40)
    # A byte a number, and a scale of two bytes for 16 of them: 16 / 9 times as many tokens.
    check_room(config, visual=1000, text=61, max_new_tokens=116, text_bits=8)
    with pytest.raises(ValueError, match=r"at most 116, since 178 text tokens"):
        check_room(config, visual=1000, text=61, max_new_tokens=117, text_bits=8)


def test_the_answer_that_an_error_offers_fits_the_memory(monkeypatch):
    """Rounded up, a few tokens more may take much more."""
    one = 2 * 2 * 3 * 2 * 16
    monkeypatch.setattr("models.generation.room.free_memory", lambda devices: 100 * one)

    def check(most):
        check_text_fits(
            CONFIG,
            batch=1,
            filled=20,
            tokens=20,
            max_new_tokens=most,
            dtype=jnp.bfloat16,
            rounded=lambda count: -(-count // 64) * 64,
        )

    with pytest.raises(ValueError, match="max_new_tokens: expected at most") as error:
        check(100)
    offered = int(re.search(r"at most (\d+)", str(error.value))[1])
    assert offered > 20
    check(offered)


def test_without_a_command_it_shows_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "demo" in out
