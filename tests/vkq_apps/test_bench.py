"""`vkq bench`: its commands but throughput, at a tiny shape, and their errors."""

import json

import pytest
from rich.console import Console

from pallas_kernels.attention import support
from tests.support.command import run
from vkq_apps.bench import device_memory, scaling_plot, tables, throughput, worker
from vkq_apps.bench.quantize import plan_quantize


def test_quantize_states_cost_and_errors(capsys, tmp_path):
    path = tmp_path / "quantize.json"
    code, out, _ = run(
        capsys, "bench", "quantize", "--shape", "tiny", "--quant", "signs-1bit,minmax-1bit",
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
    monkeypatch.setattr(support, "device_reason", lambda: None)
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
        capsys, "bench", "scaling", "--shape", "tiny", "--length", "64", "--batch", "3,1000000000",
        "--repeats", "1", "--out", str(path), "--json",
    )  # fmt: skip
    assert code == 0
    record = json.loads(out)
    path.with_suffix(".png").unlink()
    assert run(capsys, "bench", "plot", str(path))[0] == 0
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
        (["scaling", "--length", LARGEST, "--batch", f"1,{LARGEST}", "--quant", "vkq-1bit"],
         "the keys and values of one sequence in bfloat16 take 1024.0 GiB, and the device has 1.0"),
        (["scaling", "--length", "1000", "--batch", "1"], "the arrays of one call take "),
        (["quantize", "--sequences", LARGEST], "two copies of the keys and values in bfloat16"),
        (["quantize", "--prompt-text", LARGEST], "two copies of the keys and values in bfloat16"),
        (["prefill", "--sequences", LARGEST], "the prompts take "),
        (["throughput", "--budget", "9e8"], "the caches of "),
    ],
)  # fmt: skip
def test_counts_that_do_not_fit_are_refused_before_anything_is_allocated(
    capsys, monkeypatch, calls, arguments, needs
):
    monkeypatch.setattr(device_memory, "limit", lambda: 2**20)
    code, out, _ = run(capsys, "bench", *arguments, "--shape", "tiny", "--repeats", "1", "--json")
    assert code == 0
    for row in json.loads(out)["rows"]:
        assert row["status"] == "does not fit"
        assert row["message"].startswith(needs)


def test_scaling_says_why_rows_were_not_measured(capsys):
    code, out, _ = run(
        capsys, "bench", "scaling", "--shape", "tiny", "--length", "64", "--batch", "1,2",
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
    arguments = ["explain", "--shape", "internvl2.5-8b", "--quant"]
    _, out, _ = run(capsys, "bench", *arguments, "kivi-2bit", "--json")
    lines = json.loads(out)["explanation"]
    reason = "; keys: a group of 32 positions is neither the whole bank"
    (line,) = [line for line in lines if reason in line]
    assert line.startswith("mosaic_gpu: needs an NVIDIA GPU")
    assert reason in " ".join(run(capsys, "bench", *arguments, "kivi-2bit")[1].split())
    _, out, _ = run(capsys, "bench", *arguments, "signs-1bit")
    assert reason not in out
    assert "mosaic_gpu: one launch over" in out


def test_explain_needs_no_memory(capsys, tmp_path):
    path = tmp_path / "explain.json"
    arguments = ["explain", "--shape", "qwen2.5-vl-7b", "--batch", "4096", "--quant", "signs-1bit"]
    code, out, _ = run(capsys, "bench", *arguments, "--queries-per-step", "2", "--out", str(path))
    assert code == 0
    assert "queries [4096, 2, 28, 128]" in out
    assert "  xla: taken" in out
    assert "  coding, xla: taken" in out
    assert json.loads(path.read_text())["implementation_taken"] == "xla"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["throughput", "--shape", "llava"], "unknown shape 'llava', known are llava-1.5-7b"),
        (["throughput", "--quant", "vkq-7bit"], "unknown preset 'vkq-7bit'"),
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
        (["quantize", "--quant", ""], "--quant: expected names, comma-separated, got ''"),
        (["quantize", "--quant", "one-bit"], "unknown preset 'one-bit'"),
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
    code, out, err = run(capsys, "bench", *arguments)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("vkq: error: ")]
    assert message in line


def test_without_a_subcommand_it_shows_help(capsys):
    code, out, _ = run(capsys, "bench")
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
