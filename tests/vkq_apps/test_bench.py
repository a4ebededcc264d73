"""`vkq bench`: rows, their file, and every measurement at a tiny shape."""

import dataclasses
import json

import jax
import pytest
from rich.console import Console

import vkq_jax
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.shapes import find_shape
from vkq_apps.bench import device_memory, rows, scaling_plot, tables, throughput, worker
from vkq_apps.bench.decoding import compare_implementations, first_state
from vkq_apps.bench.prefilling import measure_prefill, most_sequences
from vkq_apps.bench.quantize import plan_quantize
from vkq_apps.bench.random_model import abstract_model, prompts, random_params
from vkq_apps.bench.results_file import ResultsFile
from vkq_apps.bench.sequence_cache import abstract_cache
from vkq_apps.bench.throughput_plan import compare_throughput, floors, plan_throughput
from vkq_apps.cli.main import main

HEAD = {"command": "vkq bench x", "device": "cpu", "commit": "c", "time": "now"}
TINY = ["--shape", "tiny", "--budget", "0.001", "--sequences", "5", "--repeats", "1"]
TINY += ["--steps", "2,16", "--compare-steps", "2"]


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one call."""
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.fixture
def calls(monkeypatch):
    """Workers run in this process; gives the settings they were called with."""
    made = []

    def call(task, settings, *, compile_cache=None):
        made.append((task, settings))
        return worker.TASKS[task](**settings)

    monkeypatch.setattr(worker, "call", call)
    return made


@pytest.fixture(scope="module")
def prefilled():
    """A tiny model, and logits and cache of two prompts coded in one bit."""
    shape = find_shape("tiny")
    model = abstract_model(shape)
    model = dataclasses.replace(model, params=random_params(model.params))
    logits, cache, _ = measure_prefill(
        model,
        prompts(shape, 2, 6),
        quant=vkq_jax.resolve("signs-1bit"),
        cache_length=16,
        implementation=None,
        repeats=1,
    )
    return model, logits, cache


def test_throughput_measures_compares_and_resumes(capsys, tmp_path, calls):
    path = tmp_path / "new" / "throughput.json"
    code, out, err = run(capsys, "throughput", *TINY, "--out", str(path), "--json")
    record = json.loads(out)
    assert code == 0
    assert record == json.loads(path.read_text())
    assert "[2/2] tiny, 0.001 GB, signs-1bit (default)" in err
    dense, coded = record["rows"]
    assert [row["status"] for row in record["rows"]] == ["measured"] * 2
    assert [figures["batch"] for figures in dense["batches"]] == [dense["batch"]]
    assert coded["equal_batch"] == dense["batch"] == 2
    assert coded["batch"] == 5  # the budget holds more, --sequences does not
    assert {row["prefill_sequences"] for row in record["rows"]} == {5}
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
        assert {"weights_ms", "ttft_ms", "peak_bytes", "decode_compile_seconds"} <= set(row)

    calls.clear()
    code, again, _ = run(capsys, "throughput", *TINY, "--out", str(path), "--resume", "--json")
    assert [task for task, _ in calls] == ["probe"]
    assert json.loads(again)["rows"] == record["rows"]
    code, table, _ = run(capsys, "throughput", *TINY, "--out", str(path), "--resume")
    assert "generation within a budget" in table


def test_a_budget_below_one_sequence_is_a_row_that_says_so(capsys, calls):
    arguments = ["throughput", "--shape", "tiny", "--budget", "0.00005", "--json"]
    code, out, _ = run(capsys, *arguments)
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
    code, out, err = run(capsys, "throughput", *TINY, "--out", str(path), "--json")
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
    code, out, _ = run(capsys, "throughput", *TINY, "--out", str(path), "--resume", "--json")
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
            "ttft_ms": 1.0,
            "prefill_device_ms": speed / 10,
            "batches": [{"batch": 3, "tokens_per_second": speed / 4}],
            "equal_batch": equal,
        }

    slow, fast, coded = row("none", "xla", 10), row("none", "fused", 40), row("x", "fused", 100, 3)
    for own in (slow, coded):
        compare_throughput(own, [slow, fast, coded])
    assert (slow["ratio_to_bf16"], coded["ratio_to_bf16"]) == (0.25, 2.5)
    assert coded["baseline_implementation"] == "fused"
    assert coded["ratio_to_bf16_at_equal_batch"] == 2.5
    assert (coded["ttft_ratio_to_bf16"], coded["prefill_ratio_to_bf16"]) == (1.0, 2.5)
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


def test_planned_bytes_are_those_of_the_cache(prefilled):
    _, _, cache = prefilled
    quant = vkq_jax.resolve("signs-1bit")
    planned = abstract_cache(find_shape("tiny"), quant, 2, 16)
    assert vkq_jax.cache_nbytes(planned) == vkq_jax.cache_nbytes(cache)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(planned)]
    assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(cache)]


def test_implementations_are_compared_token_by_token(prefilled):
    model, logits, cache = prefilled
    found = compare_implementations(model, first_state(logits, cache), "xla", "reference", 4)
    assert (found["against"], found["sequences"], found["steps"]) == ("reference", 2, 4)
    assert found["equal_tokens"] == 1.0
    assert found["logits_relative_error"] < 0.02  # activations are bfloat16


def test_prefill_takes_few_sequences_at_once_where_they_are_long():
    assert most_sequences(find_shape("qwen2.5-vl-7b"), 32) == 1
    assert most_sequences(find_shape("tiny"), 32) == 4


def test_quantize_states_cost_and_errors(capsys, tmp_path):
    path = tmp_path / "quantize.json"
    code, out, _ = run(
        capsys, "quantize", "--shape", "tiny", "--preset", "signs-1bit,minmax-1bit",
        "--sequences", "1", "--repeats", "1", "--out", str(path),
    )  # fmt: skip
    assert code == 0
    assert "of the block" in out
    rows = json.loads(path.read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["xla", "xla"]
    for row in rows:
        assert row["status"] == "measured"
        assert row["coding_percent"] == pytest.approx(100 * row["coding_ms"] / row["block_ms"])
        assert row["key_difference_from_plain"] == 0.0
        assert row["key_squared_error"] > 0.1


def test_quantize_has_a_row_for_the_fused_kernel_where_it_applies(monkeypatch):
    monkeypatch.setattr(mosaic_gpu, "device_reason", lambda: None)
    monkeypatch.setattr(device_memory, "claim_memory", lambda: None)
    setups = plan_quantize(
        ["internvl2.5-8b"], ["signs-1bit", "minmax-1bit"], prompt_text=8, sequences=1, repeats=1
    )
    assert [(setup.preset, setup.implementation) for setup in setups] == [
        ("signs-1bit", "xla"),
        ("signs-1bit", "mosaic_gpu"),
        ("minmax-1bit", "xla"),
    ]


def test_scaling_writes_rows_and_a_plot(capsys, tmp_path):
    path = tmp_path / "scaling.json"
    code, out, _ = run(
        capsys, "scaling", "--shape", "tiny", "--length", "64", "--batch", "3,1000000000",
        "--repeats", "1", "--out", str(path), "--json",
    )  # fmt: skip
    assert code == 0
    record = json.loads(out)
    path.with_suffix(".png").unlink()
    assert run(capsys, "plot", str(path))[0] == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(record["rows"]) == 4
    for row in record["rows"]:
        assert row["status"] == ("measured" if row["batch"] == 3 else "does not fit")
        if row["batch"] == 3:
            assert row["relative_error"] < 1e-4
            assert ("ratio_to_bf16" in row) == (row["preset"] != "none")


LARGEST = str(2**31 - 1)


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (["scaling", "--length", LARGEST, "--batch", f"1,{LARGEST}", "--preset", "vkq-1bit"],
         "the keys and values of one sequence in bfloat16 take 1024.0 GiB, and the device has 1.0"),
        (["scaling", "--length", "1000", "--batch", "1"], "the arrays of one call take "),
        (["quantize", "--sequences", LARGEST], "two copies of the keys and values in bfloat16"),
        (["quantize", "--prompt-text", LARGEST], "two copies of the keys and values in bfloat16"),
        (["throughput", "--budget", "0.01", "--sequences", LARGEST], "the prompts take "),
        (["throughput", "--budget", "9e8"], "the caches of "),
    ],
)  # fmt: skip
def test_counts_that_do_not_fit_are_refused_before_anything_is_allocated(
    capsys, monkeypatch, calls, arguments, needs
):
    monkeypatch.setattr(device_memory, "limit", lambda: 2**20)
    code, out, _ = run(capsys, *arguments, "--shape", "tiny", "--repeats", "1", "--json")
    assert code == 0
    for row in json.loads(out)["rows"]:
        assert row["status"] == "does not fit"
        assert row["message"].startswith(needs)


def test_scaling_says_why_rows_were_not_measured(capsys):
    code, out, _ = run(
        capsys, "scaling", "--shape", "tiny", "--length", "64", "--batch", "1,2",
        "--repeats", "1", "--implementation", "mosaic_gpu",
    )  # fmt: skip
    assert code == 0
    text = " ".join(out.split())
    assert text.count("does not apply here: needs an NVIDIA GPU") == 1
    assert "to bf16" not in text  # no row has it


def drawn_in_legend(rows):
    return [handle.get_label() for handle in scaling_plot._legend(rows)]


def test_the_legend_of_a_plot_lists_what_is_drawn():
    dense = {"preset": "none", "status": "measured"}
    coded = {"preset": "signs-1bit", "status": "measured"}
    assert drawn_in_legend([dense]) == ["bf16"]
    assert drawn_in_legend([dense, coded]) == ["bf16", "signs-1bit"]
    left_out = coded | {"status": "not supported"}
    assert drawn_in_legend([dense, left_out]) == ["bf16", "signs-1bit", "not measured"]


def test_a_table_of_wide_rows_is_whole_and_has_no_empty_column():
    row = {
        "shape": "internvl2.5-8b",
        "budget_gb": 30.0,
        "preset": "signs-1bit",
        "implementation_taken": "mosaic_gpu",
        "batch": 1024,
        "bytes_per_sequence": {"total": 37.5e6},
        "tokens_per_second": 23441.0,
        "ratio_to_bf16": 16.08,
        "ratio_to_bf16_at_equal_batch": 11.98,
        "step_ms": 34.13,
        "weights_ms": 15.01,
        "ttft_ms": 1218.0,
        "prefill_ratio_to_bf16": 1.08,
        "peak_bytes": 46.1e9,
        "agreement": None,
        "status": "measured",
    }
    failed = {"shape": "tiny", "budget_gb": 1.0, "preset": "none"}
    failed |= {"status": "out of memory", "message": "[no] room"}

    def shown(*rows):
        console = Console(width=124)
        record = {"device": "GPU", "bandwidth": 2.9e12, "rows": rows}
        with console.capture() as captured:
            console.print(tables.throughput_table(record))
        return " ".join(captured.get().split())

    assert "xla" not in shown(row)
    compared = row | {"agreement": {"equal_tokens": 0.995}}
    assert "as xla: greedy tokens that XLA's attention gives too; blank" in shown(row, compared)
    text = shown(row, compared, failed)
    assert "…" not in text
    assert "out of memory: [no] room" in text
    assert {"internvl2.5-8b", "mosaic_gpu", "23441", "34.13"} <= set(text.split())


def test_explain_says_why_the_kernel_does_not_cover_a_cache_without_a_gpu(capsys):
    arguments = ["explain", "--shape", "internvl2.5-8b", "--preset"]
    _, out, _ = run(capsys, *arguments, "kivi-2bit", "--json")
    lines = json.loads(out)["explanation"]
    reason = "; keys: a group of 32 positions is neither the whole bank"
    (line,) = [line for line in lines if reason in line]
    assert line.startswith("mosaic_gpu: needs an NVIDIA GPU")
    assert reason in " ".join(run(capsys, *arguments, "kivi-2bit")[1].split())
    _, out, _ = run(capsys, *arguments, "signs-1bit")
    assert reason not in out
    assert "mosaic_gpu: one launch over" in out


def test_explain_needs_no_memory(capsys, tmp_path):
    path = tmp_path / "explain.json"
    arguments = ["explain", "--shape", "qwen2.5-vl-7b", "--batch", "4096", "--preset", "signs-1bit"]
    code, out, _ = run(capsys, *arguments, "--queries-per-step", "2", "--out", str(path))
    assert code == 0
    assert "queries [4096, 2, 28, 128]" in out
    assert "  xla: taken" in out
    assert "  coding, xla: taken" in out
    assert json.loads(path.read_text())["implementation_taken"] == "xla"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["throughput", "--shape", "llava"], "unknown shape 'llava', known are llava-1.5-7b"),
        (["throughput", "--preset", "vkq-7bit"], "unknown preset 'vkq-7bit'"),
        (["throughput", "--budget", "5,many"], "--budget: expected finite positive numbers"),
        (["throughput", "--budget", "inf"], "--budget: expected finite positive numbers"),
        (["throughput", "--budget", "nan"], "--budget: expected finite positive numbers"),
        (["throughput", "--shape", ""], "--shape: expected names, comma-separated, got ''"),
        (["throughput", "--baseline", ","], "--baseline: expected names"),
        (["throughput", "--steps", "20,4"], "steps must be two rising numbers"),
        (["throughput", "--text-capacity", "40"], "do not fit a text capacity of 40"),
        (["throughput", "--implementation", "cuda"], "implementation must be auto, "),
        (["throughput", "--resume"], "--resume needs --out"),
        (["scaling", "--batch", "0"], "--batch: expected positive integers below 2**31"),
        (["quantize", "--preset", ""], "--preset: expected names, comma-separated, got ''"),
        (["quantize", "--preset", "one-bit"], "unknown preset 'one-bit'"),
        (["plot", "README.md"], "README.md was not written by `vkq bench scaling`"),
        (
            ["plot", "vkq_apps/cli/demo.png"],
            "vkq_apps/cli/demo.png was not written by `vkq bench scaling`",
        ),
        (["explain"], "Missing option '--shape'"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("vkq: error: ")]
    assert message in line


def test_without_a_subcommand_it_shows_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "throughput" in out


def test_a_worker_is_a_process_of_its_own(tmp_path, monkeypatch):
    settings = vars(
        throughput.ThroughputSetup(
            shape="tiny",
            preset="none",
            implementation=None,
            budget_gb=1e-4,
        )
    )
    row = worker.call("throughput", settings, compile_cache=str(tmp_path))
    assert row["status"] == "does not fit"
    monkeypatch.setattr(worker.sys, "executable", "false")
    broken = worker.call("throughput", settings)
    assert broken == {"status": "failed", "message": "the process ended with code 1"}
