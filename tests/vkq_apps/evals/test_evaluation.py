"""`vkq eval` from end to end, on the embedded checkpoint and few samples."""

import json

import numpy as np
import pytest
from PIL import Image

import models
from models.loading import TINY
from tests.support.command import run
from vkq_apps.cli.main import main
from vkq_apps.evals.batches import _check_context
from vkq_apps.evals.plan import known_tasks
from vkq_apps.evals.synthetic import synthetic_tasks
from vkq_apps.training.heldout import heldout

ARGUMENTS = ["eval", "--tasks", "shapes,bars", "--quant", "vkq-1bit", "--samples", "7",
             "--seed", "3", "--batch-size", "4", "--json"]  # fmt: skip
SAMPLES = {"shapes": 4, "bars": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def whole(folder):
    """Results and log of a run that nothing disturbed."""
    path = folder / "whole.json"
    with pytest.raises(SystemExit) as exit_:
        main([*ARGUMENTS, "--out", str(path), "--control", "--plots", str(folder / "plots")])
    assert exit_.value.code == 0
    log = path.with_name("whole.json.samples.jsonl")
    return json.loads(path.read_text()), log.read_text().splitlines()


def test_the_record_says_what_the_command_promises(whole):
    record, _ = whole
    assert record["command"] == "vkq eval"
    assert set(record["offline_table_bytes"]) <= {"vkq-1bit"}
    assert list(record["presets"]) == ["none", "vkq-1bit", "none, other pictures"]
    for name, preset in record["presets"].items():
        bits = preset["bits_per_element"]
        assert bits["mean"] == pytest.approx((bits["key"] + bits["value"]) / 2)
        assert preset["visual_kv_reduction"] == pytest.approx(1 - bits["mean"] / 16, abs=1e-5)
        assert set(preset["tasks"]) == {"shapes", "bars", "all"}
        for task, figures in preset["tasks"].items():
            assert figures["samples"] == SAMPLES.get(task, 7)
            low, high = figures["exact_interval"]
            assert 0 <= low <= figures["exact"] <= high <= 1
            low, high = figures["lost_interval"]
            assert -100 <= low <= figures["lost"] <= high <= 100
            assert 0 <= figures["agreement"] <= 1
            assert (figures["kl"] is None) is (name == "none, other pictures")
    full = record["presets"]["none"]["tasks"]["all"]
    assert (full["lost"], full["agreement"], full["kl"]) == (0, 1, 0)
    assert full["lost_interval"] == [0, 0]
    assert full["first_diverging_step"] is None


def test_one_bit_is_about_one_bit_and_loses_little(whole):
    preset = whole[0]["presets"]["vkq-1bit"]
    assert preset["bits_per_element"]["mean"] < 1.25
    assert 0 < preset["tasks"]["all"]["kl"] < 0.2


def test_guessing_is_worse_than_looking(whole):
    presets = whole[0]["presets"]
    guessed = presets["none, other pictures"]["tasks"]["all"]
    assert guessed["exact"] < presets["none"]["tasks"]["all"]["exact"]
    assert guessed["lost"] > 0


def test_plots_are_written(whole, folder):
    for name in ("accuracy.png", "kl.png"):
        with Image.open(folder / "plots" / name) as plot:
            assert plot.size[0] > 300


def test_a_killed_run_resumes_to_the_same_results(whole, folder, capsys):
    record, lines = whole
    path, log = folder / "part.json", folder / "part.json.samples.jsonl"
    command = [*ARGUMENTS, "--control", "--out", str(path), "--resume"]
    # Cut within the second batch of the first task, in the middle of a line.
    log.write_text("\n".join(lines[:10]) + "\n" + lines[10][:40])
    code, out, err = run(capsys, *command)
    assert code == 0
    assert "14 of 14 questions" in err
    assert json.loads(out)["presets"] == record["presets"]
    resumed = log.read_text().splitlines()
    assert sorted(resumed) == sorted(lines)
    before = log.read_bytes()
    added = folder / "part.json.added.samples.jsonl"  # of a run killed behind its results
    added.write_text("{}\n")
    code, out, _ = run(capsys, *command)  # nothing is left to do
    assert code == 0
    assert json.loads(out)["presets"] == record["presets"]
    assert log.read_bytes() == before
    assert not added.exists()


def test_answers_are_those_of_generate(whole):
    model = models.load("tiny")
    samples = synthetic_tasks()["shapes"].choose(4, 3)
    inputs = models.prepare(
        model,
        images=[sample.load()[0] for sample in samples],
        prompts=[models.chat_prompt(model, sample.question) for sample in samples],
    )
    generation = models.generate(
        model, inputs, quant="vkq-1bit", max_new_tokens=8, quantize_at="image"
    )
    texts = models.decode(model, generation.tokens, generation.lengths)
    records = map(json.loads, whole[1][1:])
    logged = {
        record["sample"]: record["answer"]
        for record in records
        if (record["preset"], record["task"]) == ("vkq-1bit", "shapes")
    }
    assert [logged[sample.key] for sample in samples] == [text.strip() for text in texts]


@pytest.fixture
def own(tmp_path):
    """Three questions about two pictures, one of them with choices."""
    for index in range(2):
        Image.fromarray(heldout("shapes", index).image).save(tmp_path / f"{index}.png")
    turns = [turn for turn in heldout("shapes", 0).turns if turn.task == "shape_count"]
    records = [
        {"image": "0.png", "question": turns[0].question, "choices": ["1", "2", "3", "9"]},
        {"images": ["1.png"], "question": "how many shapes are there?"},
    ]
    for record in records:
        record["answers"] = record.get("choices", ["4"])[:1]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_own_data_with_choices_errors_by_layer_and_codes_at_the_prompt(own, capsys):
    code, out, _ = run(
        capsys, "eval", "--data", f"jsonl={own}", "--metric", "anls", "--quant", "minmax-8bit",
        "--quantize-at", "prompt", "--by-layer", "--batch-size", "4", "--json",
        "--implementation", "xla",
    )  # fmt: skip
    assert code == 0
    record = json.loads(out)
    assert (record["tasks"], record["implementation"]) == (["own"], "xla")
    preset = record["presets"]["minmax-8bit"]
    assert 8 < preset["bits_per_element"]["mean"] < 9
    task = preset["tasks"]["own"]
    assert task["samples"] == 2
    assert task["metric"] == "anls"
    assert 0 < task["kl"] < 1e-4
    assert task["agreement"] == 1
    assert set(preset["layers"]) == {"score_error", "output_error"}
    for errors in preset["layers"].values():
        assert len(errors) == 6
        assert all(0 < error < 0.01 for error in errors)


def test_another_checkpoint_is_not_asked_about_the_recipes_pictures(tmp_path):
    model = models.load("tiny")
    assert set(known_tasks(model, {}, synthetic=False)) == set(synthetic_tasks())
    for path in TINY.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).symlink_to(path)
    other = models.load(tmp_path)
    with pytest.raises(ValueError, match="expected --data FORMAT=PATH with one of jsonl, coco"):
        known_tasks(other, {}, synthetic=False)
    assert set(known_tasks(other, {}, synthetic=True)) == set(synthetic_tasks())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "texts"], "--tasks: expected all or some of text, document"),
        (["--quant", "minmax-3bit"], "unknown preset 'minmax-3bit'"),
        (["--samples", "2"], "--samples: expected at least one for each of"),
        (["--resume"], "--resume: expected --out FILE"),
        (["--quant", "keep-7%", "--quantize-at", "prompt"], "expected --quantize-at image"),
        (["--data", "docvqa=/none"], "/none does not exist"),
        (["--quantize-at", "never"], "'never' is not one of"),
        (["--implementation", "cuda"], "implementation must be auto, mosaic_gpu, xla"),
        (["--implementation", "mosaic_gpu"], "'mosaic_gpu' does not apply here"),
    ],
)
def test_bad_options_are_one_clear_line(arguments, message, capsys):
    code, out, err = run(capsys, "eval", *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_a_resume_with_other_settings_is_refused(whole, folder, capsys):
    other = [{"3": "4"}.get(word, word) for word in ARGUMENTS]  # the seed
    code, _, err = run(capsys, *other, "--control", "--out", str(folder / "whole.json"), "--resume")
    assert code == 2
    assert "made with other settings: questions is" in err or "seed is '3' there" in err


def test_a_question_longer_than_the_context_is_named():
    """Beyond its context a model answers, but not what it can."""
    model = models.Model({}, graphdef=None, config=models.read_config("tiny"))
    task = synthetic_tasks()["shapes"]
    most = 1024 - task.max_new_tokens
    _check_context(model, task, np.asarray([most, most]))
    with pytest.raises(ValueError, match=f"at most {most} tokens beside .* got {most + 1}"):
        _check_context(model, task, np.asarray([3, most + 1]))
