"""`vkq bench throughput` and `prefill`: rows, their order and ratios, at a tiny shape."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import pytest

import vkq_jax
from models.generation.decode_loop import DecodeState
from models.generation.prefill import prefill
from pallas_kernels.shapes import find_shape
from tests.support.command import run
from vkq_apps.bench import rows, throughput, worker
from vkq_apps.bench.codes import read_codes
from vkq_apps.bench.decoding import compare_implementations
from vkq_apps.bench.prefilling import most_sequences
from vkq_apps.bench.random_model import abstract_model, drawn_model, prompts
from vkq_apps.bench.sequence_cache import (
    abstract_cache,
    random_layer,
    random_tables_of,
    repeated_cache,
)
from vkq_apps.bench.throughput_plan import compare_throughput, floors, plan_throughput
from vkq_apps.files.results_file import ResultsFile
from vkq_jax.settings.presets import calibrated_presets

HEAD = {"command": "vkq bench x", "device": "cpu", "commit": "c", "time": "now"}
TINY = ["--shape", "tiny", "--budget", "0.001", "--sequences", "5", "--repeats", "1"]
TINY += ["--steps", "2,16", "--compare-steps", "2", "--quant", "signs-1bit"]


def test_throughput_measures_compares_and_resumes(capsys, tmp_path, calls):
    path = tmp_path / "new" / "throughput.json"
    code, out, err = run(capsys, "bench", "throughput", *TINY, "--out", str(path), "--json")
    record = json.loads(out)
    assert code == 0
    assert record == json.loads(path.read_text())
    assert "[2/2] tiny, 0.001 GB, signs-1bit (default)" in err
    dense, coded = record["rows"]
    assert [row["status"] for row in record["rows"]] == ["measured"] * 2
    assert [figures["batch"] for figures in dense["batches"]] == [dense["batch"]]
    assert coded["equal_batch"] == dense["batch"] == 2
    assert coded["batch"] == 5  # the budget holds more, --sequences does not
    assert [figures["batch"] for figures in coded["batches"]][-1] == coded["equal_batch"]
    assert coded["ratio_to_bf16_at_equal_batch"] > 0
    assert "ratio_to_bf16_at_equal_batch" not in dense
    for row in record["rows"]:
        one = row["bytes_per_sequence"]
        assert one["total"] == one["visual_codes"] + one["visual_tables"] + one["text"]
        assert row["cache_bytes"] == row["batch"] * one["total"] <= 1e6
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / row["step_ms"])
        ratio = row["tokens_per_second"] / dense["tokens_per_second"]
        assert row["ratio_to_bf16"] == pytest.approx(ratio)
        assert row["implementation_taken"] == "xla"
        assert row["device"] == record["device"]
        assert {"weights_ms", "peak_bytes", "decode_compile_seconds"} <= set(row)

    calls.clear()
    resumed = ["bench", "throughput", *TINY, "--out", str(path), "--resume"]
    code, again, _ = run(
        capsys, "bench", "throughput", *TINY, "--out", str(path), "--resume", "--json"
    )
    assert [task for task, _ in calls] == ["probe"]
    assert json.loads(again)["rows"] == record["rows"]
    code, table, _ = run(capsys, *resumed)
    assert "generation within a budget" in table


def test_a_budget_below_one_sequence_is_a_row_that_says_so(capsys, calls):
    arguments = ["--shape", "tiny", "--budget", "0.00005", "--quant", "signs-1bit", "--json"]
    code, out, _ = run(capsys, "bench", "throughput", *arguments)
    assert code == 0
    dense, coded = json.loads(out)["rows"]
    assert dense["status"] == coded["status"] == "does not fit"
    assert "393216 bytes" in dense["message"]


def test_a_failure_is_a_row_fails_the_command_and_is_measured_again(
    capsys, tmp_path, monkeypatch, calls
):
    path = tmp_path / "throughput.json"

    def hinder(setup, row, say):
        row["batch"] = 3
        if setup.preset == "none":
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        raise AssertionError("broken")

    monkeypatch.setattr(worker, "measure_throughput", hinder)
    code, out, err = run(capsys, "bench", "throughput", *TINY, "--out", str(path), "--json")
    assert code == 1
    assert [row["status"] for row in json.loads(out)["rows"]] == ["out of memory", "failed"]
    message = "unexpected AssertionError: broken; `vkq --traceback ...` shows where from"
    assert json.loads(out)["rows"][1]["message"] == message
    assert f"failed: {message}" in " ".join(err.split())
    assert "Traceback" not in err
    assert json.loads(out)["rows"][1]["batch"] == 3

    def unsupported(setup, row, say):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(worker, "measure_throughput", unsupported)
    code, out, _ = run(
        capsys, "bench", "throughput", *TINY, "--out", str(path), "--resume", "--json"
    )
    assert code == 0
    assert [row["status"] for row in json.loads(out)["rows"]] == ["not supported"] * 2


@pytest.mark.parametrize("known", [{}, {"weight_bytes": 4}, {"bytes_per_sequence": {}}])
def test_a_row_that_failed_early_has_the_floors_of_what_it_knows(known):
    row = {"status": "failed", **known}
    floors(row, 2.0)
    assert row.get("weights_ms") == (2000.0 if "weight_bytes" in known else None)
    assert "visual_ms" not in row
    with pytest.raises(ValueError, match=r"must be positive and below 1e\+09 GB, got inf"):
        throughput.ThroughputSetup("tiny", "none", None, budget_gb=float("inf"))


def test_plan_has_a_group_for_each_shape_and_budget():
    groups = plan_throughput(
        ["tiny"], [1.0, 2.0], ["signs-1bit"], ["mosaic_gpu", None], ["xla"], compare_steps=3
    )
    assert [[setup.equal_to for setup in group] for group in groups] == [[None, "none", "none"]] * 2
    assert {setup.compare_steps for setup in groups[0]} == {3}
    assert {setup.compare_steps for setup in groups[1]} == {0}
    assert [setup.implementation for setup in groups[0]] == [
        "xla", "mosaic_gpu", None,
    ]  # fmt: skip
    first, second = groups[0][0], groups[0][1]
    assert first.key == dataclasses.replace(first, compare_steps=0).key != second.key


def test_ratios_are_to_the_fastest_bf16_row():
    def row(preset, implementation, speed, equal=None):
        return {
            "status": "measured",
            "preset": preset,
            "implementation_taken": implementation,
            "tokens_per_second": speed,
            "batches": [{"batch": 3, "tokens_per_second": speed / 4}],
            "equal_batch": equal,
        }

    slow, fast, coded = row("none", "xla", 10), row("none", "fused", 40), row("x", "fused", 100, 3)
    for own in (slow, coded):
        compare_throughput(own, [slow, fast, coded])
    assert (slow["ratio_to_bf16"], coded["ratio_to_bf16"]) == (0.25, 2.5)
    assert coded["baseline_implementation"] == "fused"
    assert coded["ratio_to_bf16_at_equal_batch"] == 2.5
    assert "ratio_to_bf16_at_equal_batch" not in slow
    unpaired = row("x", "fused", 100)
    compare_throughput(unpaired, [slow | {"status": "out of memory"}])
    assert "ratio_to_bf16" not in unpaired


@dataclasses.dataclass(frozen=True)
class Fake:
    number: int

    @property
    def key(self):
        return {"number": self.number}


def test_no_row_begins_that_would_end_too_late(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(rows.time, "perf_counter", lambda: clock[0])

    def measure(setup):
        clock[0] += 10.0
        return {"status": "measured"}

    def measured(seconds, resume):
        results = ResultsFile(tmp_path / "rows.json", HEAD, resume=resume)
        groups = [[Fake(0), Fake(1)], [Fake(2), Fake(3)], [Fake(4)]]
        rows.run_groups(
            groups,
            measure,
            results,
            compare=lambda row, group: None,
            say=lambda text: None,
            seconds=seconds,
        )
        return [row["number"] for row in results.rows], results.record()["left_out"]

    # After one group (20 s) the next, of two rows, would end at 40 s; the one of a single row fits.
    assert measured(35, resume=False) == ([0, 1, 4], ["Fake(number=2)", "Fake(number=3)"])
    assert measured(None, resume=True) == ([0, 1, 4, 2, 3], [])


def test_a_group_of_which_a_row_is_missing_is_measured_anew(tmp_path):
    results = ResultsFile(tmp_path / "rows.json", HEAD)
    results.add({"number": 0, "status": "measured", "old": True})
    other = ResultsFile(tmp_path / "rows.json", HEAD | {"device": "other"}, resume=True)
    assert (other.rows, other.dropped) == ([], 1)
    resumed = ResultsFile(tmp_path / "rows.json", HEAD, resume=True)
    rows.run_groups(
        [[Fake(0), Fake(1)]],
        lambda setup: {"status": "measured"},
        resumed,
        compare=lambda row, group: None,
        say=lambda text: None,
    )
    assert [(row["number"], "old" in row) for row in resumed.rows] == [(0, False), (1, False)]


@pytest.mark.parametrize("name", ["signs-1bit", "vkq-1bit", "vkq-1bit-tables:text8"])
def test_planned_caches_are_those_of_a_prefill(name):
    shape, codes = find_shape("tiny"), read_codes(name)
    tables = jax.eval_shape(lambda: random_tables_of(codes, shape, jax.random.key(0)))

    def fill(model, inputs, tables):
        return prefill(
            model,
            inputs,
            None,
            quant=codes.quant,
            cache_length=16,
            tables=tables,
            text_bits=codes.text_bits,
        )[1]

    cache = jax.eval_shape(fill, abstract_model(shape), prompts(shape, 2, 6), tables)
    planned = abstract_cache(shape, codes, 2, 16)
    assert vkq_jax.cache_nbytes(planned) == vkq_jax.cache_nbytes(cache)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(planned)]
    assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(cache)]


def test_implementations_are_compared_token_by_token():
    shape = find_shape("tiny")
    layer = random_layer(
        jax.random.key(0), shape, shape.visual_tokens, 16, read_codes("signs-1bit")
    )
    logits = jax.nn.one_hot(jnp.array([3, 5]), shape.vocab_size)
    state = DecodeState.start(logits, repeated_cache(layer, shape, 2, 6))
    model = drawn_model(abstract_model(shape))
    found = compare_implementations(model, state, "xla", "reference", 4)
    assert (found["against"], found["sequences"], found["steps"]) == ("reference", 2, 4)
    assert found["equal_tokens"] == 1.0
    assert found["logits_relative_error"] < 0.02  # activations are bfloat16


@pytest.mark.parametrize(
    ("name", "has_tables", "text_bits"),
    [("vkq-1bit:plain", False, None), ("vkq-1bit-tables:text8", True, 8), ("none", False, None)],
)
def test_names_of_codes(name, has_tables, text_bits):
    codes = read_codes(name)
    assert (codes.has_tables, codes.text_bits) == (has_tables, text_bits)


def test_plans_with_tables_go_by_number():
    plans = calibrated_presets["vkq-1bit"]
    assert read_codes("vkq-1bit-tables").quant == plans[0]
    assert read_codes("vkq-1bit-plan3").quant == plans[3]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("signs-1bit-tables", "a preset that takes tables"),
        ("signs-1bit-plan0", "a preset that takes tables"),
        ("vkq-half-plan9", "a plan of vkq-half from 0 to 0"),
    ],
)
def test_codes_without_such_a_plan_have_none(name, expected):
    with pytest.raises(ValueError, match=f"{name}: expected {expected}"):
        read_codes(name)


def test_prefill_measures_compiling_time_and_memory(capsys, tmp_path, calls):
    path = tmp_path / "prefill.json"
    arguments = ["prefill", "--shape", "tiny", "--quant", "signs-1bit", "--sequences", "1"]
    arguments += ["--repeats", "1", "--out", str(path)]
    code, out, _ = run(capsys, "bench", *arguments)
    assert code == 0
    assert "prefill of a few prompts at once" in out
    dense, coded = json.loads(path.read_text())["rows"]
    assert (dense["preset"], coded["preset"]) == ("none", "signs-1bit")
    assert coded["ratio_to_bf16"] == coded["milliseconds"] / dense["milliseconds"]
    for row in (dense, coded):
        assert row["status"] == "measured"
        assert (row["sequences_at_once"], row["tokens"]) == (1, 352)
        assert min(row["compile_seconds"], row["milliseconds"], row["temporary_bytes"]) > 0


def test_transformers_is_a_row_where_pytorch_is(capsys, monkeypatch, calls):
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = ["--baseline", "transformers", "--implementation", "mosaic_gpu", "--json"]
    code, out, _ = run(capsys, "bench", "throughput", *TINY, *arguments)
    assert code == 0
    rival, _ = json.loads(out)["rows"]
    assert rival["status"] == "not supported"
    assert "PyTorch" in rival["message"]


@pytest.mark.parity
def test_transformers_generates_as_many_sequences_as_bfloat16(capsys, calls):
    arguments = ["--baseline", "transformers", "--implementation", "mosaic_gpu", "--json"]
    code, out, _ = run(capsys, "bench", "throughput", *TINY, *arguments)
    assert code == 0
    rival, _ = json.loads(out)["rows"]
    assert (rival["status"], rival["batch"]) == ("measured", 2)
    assert rival["tokens_per_second"] == pytest.approx(2e3 / rival["step_ms"])


def test_files_of_one_device_are_joined(capsys, tmp_path):
    def write(name, device="GPU", budget=5.0):
        row = {"shape": "tiny", "preset": "none", "budget_gb": budget, "status": "failed"}
        head = {"command": "vkq bench throughput", "device": device, "bandwidth": 1e9}
        (tmp_path / name).write_text(json.dumps(head | {"rows": [row | {"message": "broken"}]}))
        return str(tmp_path / name)

    first, second = write("a.json"), write("b.json", budget=30.0)
    out = tmp_path / "all.json"
    assert run(capsys, "bench", "join", first, second, "--out", str(out))[0] == 0
    assert [row["budget_gb"] for row in json.loads(out.read_text())["rows"]] == [5.0, 30.0]
    for other, message in (
        (write("c.json", device="CPU"), "expected rows of 'GPU'"),
        (write("d.json"), "expected each row in one file"),
    ):
        code, _, err = run(capsys, "bench", "join", first, other, "--out", str(tmp_path / "no"))
        assert code == 2
        assert message in err
    assert not (tmp_path / "no").exists()
    (tmp_path / "picture.png").write_bytes(b"a picture")
    code, _, err = run(capsys, "bench", "join", first, "--out", str(tmp_path / "picture.png"))
    assert code == 2
    assert "is no output of `vkq bench throughput`" in err
    assert (tmp_path / "picture.png").read_bytes() == b"a picture"


def test_prefill_takes_few_sequences_at_once_where_they_are_long():
    assert most_sequences(find_shape("qwen2.5-vl-7b"), 32) == 1
    assert most_sequences(find_shape("tiny"), 32) == 4
