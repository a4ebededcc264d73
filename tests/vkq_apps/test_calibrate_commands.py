"""`vkq calibrate` and `vkq calibrate-scores`: files that others take, checks before loading."""

import json
import os
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.command import run
from tests.support.tiny_llava import CONFIG, WINDOWED, tiny_model
from vkq_apps.cli.sample_folder import read_prompts


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
    unread = ["/never loaded" if x == "tiny" else x for x in ask]
    code, _, err = run(capsys, *unread, path, "--quant", "vkq-1bit")
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
    monkeypatch.setattr("vkq_apps.cli.calibrate.files_digest", lambda model: "0")
    monkeypatch.setattr("models.calibrate_codes", calibrate_codes)
    ask = ["calibrate", "--model", "tiny", "--out", str(tmp_path / "x")]
    code, _, err = run(capsys, *ask, "--samples", "1", "--implementation", name)
    assert code == 2
    assert err.splitlines()[-1] == f"vkq: error: calibrated by {taken}"
    assert asked["layers_apart"] is layers_apart


def test_calibrate_shows_the_kl_of_plans_that_it_compared(capsys, monkeypatch, tmp_path):
    def calibrate_codes(model, inputs, *, on_preset, folder, **options):
        assert [file.name for file in folder.iterdir()] == ["settings.json"]
        on_preset("vkq-1bit", [0.25, 0.5])
        on_preset("vkq-half", [])  # nothing to compare a single plan with
        tables = np.zeros(250_000, np.float32)
        presets = [SimpleNamespace(name=name, tables=tables) for name in ("vkq-1bit", "vkq-half")]
        return SimpleNamespace(presets=presets)

    monkeypatch.setattr("models.load", lambda folder, **options: None)
    monkeypatch.setattr("vkq_apps.cli.calibrate.files_digest", lambda model: "0")
    monkeypatch.setattr("models.calibrate_codes", calibrate_codes)
    monkeypatch.setattr("vkq_jax.save_tables", lambda file, codes: None)
    ask = ["calibrate", "--model", "tiny", "--out", str(tmp_path / "x"), "--samples", "1"]
    code, out, _ = run(capsys, *ask)
    assert code == 0
    assert out.splitlines()[:2] == [
        "vkq-1bit: KL of its plans 0.25 / 0.5, 1.0 MB of tables",
        "vkq-half: one plan, 1.0 MB of tables",
    ]
    assert list(tmp_path.iterdir()) == []


def test_calibrate_resumes_with_the_same_settings_alone(capsys, monkeypatch, tmp_path):
    found = []

    def stopped(model, inputs, *, folder, **options):
        found.append((folder / "samples-0").exists())
        (folder / "samples-0").touch()
        raise OSError("the disk is full")

    monkeypatch.setattr("models.load", lambda folder, **options: None)
    monkeypatch.setattr("vkq_apps.cli.calibrate.files_digest", lambda model: "0")
    monkeypatch.setattr("models.calibrate_codes", stopped)
    ask = ["calibrate", "--model", "tiny", "--out", str(tmp_path / "x"), "--samples", "1"]
    code, _, err = run(capsys, *ask)
    assert code == 2
    assert "x.part keeps what is done: --resume goes on from it" in err.replace("\n", "")
    code, _, err = run(capsys, *ask, "--seed", "1", "--resume")
    assert code == 2
    assert "x.part was made with other settings: " in err.splitlines()[-1]
    run(capsys, *ask, "--resume")
    assert found == [False, True]
    shutil.rmtree(tmp_path / "x.part")
    (tmp_path / "x.part").touch()
    code, _, err = run(capsys, *ask)
    assert code == 2
    assert "x.part exists and was not made by `vkq calibrate`" in err.splitlines()[-1]


def test_questions_of_a_file_as_windows_writes_it(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("What is it?\r\n\r\nWhere?\r\n", encoding="utf-8-sig", newline="")
    assert read_prompts(file) == ["What is it?", "Where?"]
