"""The command line: what programs and people get, and one clear line for bad input."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import vkq_jax
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
    code, _, _ = run(capsys, *ask, path)
    assert code == 0
    vkq_jax.save_score_map(path, jax.tree.map(lambda x: x[:1], score_map))
    code, _, err = run(capsys, *ask, path)
    assert code == 2
    assert "score_map.slope: expected [layers, query heads]" in err.splitlines()[-1]


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
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("vkq: error: ")]
    assert message in line


def test_an_unreadable_image_and_more_images_than_tokens(capsys, tmp_path, picture):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    ask = ["generate", "--model", "tiny", "--prompt", "USER: <image> hi ASSISTANT:"]
    code, _, err = run(capsys, *ask, "--image", str(broken))
    assert code == 2
    assert "broken.png" in err.splitlines()[-1]
    code, _, err = run(capsys, *ask, "--image", picture, "--image", picture)
    assert code == 2
    assert "more images than tokens" in err.splitlines()[-1]


def test_without_a_command_it_shows_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "demo" in out
