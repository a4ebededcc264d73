"""The command line: what programs and people get, and one clear line for bad input."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vkq_jax
from tests.support.tiny_llava import CONFIG, WINDOWED, tiny_model
from vkq_apps.cli.main import main


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one call."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(path)
    return str(path)


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


def test_generate_shows_a_table_to_people(capsys, picture):
    code, out, err = run(
        capsys, "generate", "--model", "tiny", "--image", picture,
        "--prompt", "describe the picture", "--max-new-tokens", "2", "--no-compare",
    )  # fmt: skip
    assert code == 0
    assert "vkq-1bit" in out
    assert "576 visual tokens" in out
    assert "in all" in err


def test_eval_writes_its_table(capsys, tmp_path):
    path = tmp_path / "new" / "answers.json"
    code, out, _ = run(
        capsys, "eval", "--quant", "vkq-1bit,calibquant-1bit", "--pictures", "1",
        "--questions-per-picture", "1", "--batch-size", "5", "--control",
        "--calibration-pictures", "1", "--out", str(path), "--json",
    )  # fmt: skip
    assert code == 0
    record = json.loads(path.read_text())
    assert record == json.loads(out)
    assert record["questions"] == record["calibration_questions"] == 5
    assert "calibquant-1bit, static scores" in record["presets"]
    assert record["presets"]["none"]["scores"]["all"]["agreement"] == 1.0
    assert record["presets"]["vkq-1bit"]["visual_kv_reduction"] >= 0.9
    control = record["presets"]["none, shuffled images"]["scores"]["all"]
    assert control["exact"] < record["presets"]["none"]["scores"]["all"]["exact"]


def test_calibrate_writes_a_map_that_generate_takes(capsys, tmp_path, picture):
    path = str(tmp_path / "new" / "map.safetensors")
    code, out, _ = run(
        capsys, "calibrate", "--model", "tiny", "--image", picture, "--image", picture,
        "--prompt", "describe the picture", "--max-new-tokens", "2", "--out", path, "--json",
    )  # fmt: skip
    record = json.loads(out)
    assert code == 0
    assert record["sample_prompts"] == 2
    score_map = vkq_jax.load_score_map(path)
    assert score_map.slope.shape == (record["layers"], record["query_heads"])
    assert record["heads_left_alone"] == (score_map.slope == 1).sum()

    ask = ["generate", "--model", "tiny", "--image", picture, "--prompt", "describe the picture"]
    ask += ["--quant", "calibquant-1bit", "--max-new-tokens", "2", "--no-compare", "--score-map"]
    code, out, _ = run(capsys, *ask, path, "--json")
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
    monkeypatch.setattr("models.load", lambda folder: tiny_model(config=config))
    monkeypatch.setattr("models.calibrate_scores", lambda model, inputs, **options: made)
    code, out, _ = run(
        capsys, "calibrate", "--model", "tiny", "--image", picture, "--prompt", "y",
        "--out", str(tmp_path / "map"),
    )  # fmt: skip
    assert code == 0
    assert " ".join(out.split()).endswith(ending)


def test_calibrate_checks_before_it_loads_a_model(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    ask = ["calibrate", "--model", "/never loaded", "--image", "x"]
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
    ("arguments", "message"),
    [
        (["generate", "--modle", "tiny"], "No such option: --modle"),
        (["nonsense"], "No such command"),
        (["demo", "--quant", "vkq-2bit"], "unknown preset 'vkq-2bit'"),
        (["generate", "--model", "/none", "--image", "x", "--prompt", "y"], "/none does not exist"),
        (["generate", "--model", "tiny", "--image", "/x.png", "--prompt", "y"], "/x.png"),
        (["eval", "--quantize-at", "never"], "'never' is not one of"),
        (
            ["eval", "--quant", "vkq-1bit", "--calibration-pictures", "1"],
            "no preset of 'vkq-1bit' calibrates",
        ),
        (
            ["generate", "--model", "tiny", "--image", "x", "--prompt", "y", "--score-map", "/x"],
            "no score map file at /x",
        ),
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


def test_without_a_command_it_shows_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "demo" in out
