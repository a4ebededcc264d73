"""`vkq bench kernel`: its times, its baselines and its rows, as far as a CPU can tell."""

import importlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from tests.support.caches import Shape, random_layer
from vkq_apps.bench import baselines, kernel, timing
from vkq_apps.bench.baselines import DecodeShape, Measured
from vkq_apps.bench.decoding import measure_decoding
from vkq_apps.bench.processes import process_pool
from vkq_apps.bench.step_profile import time_by_group
from vkq_apps.bench.timing import LayerTime
from vkq_apps.cli.main import main

SHAPE = DecodeShape(batch=2, kv_heads=2, queries=3, positions=40, head_dim=16)


def test_time_per_layer_is_of_one_layer_by_the_clock_where_no_gpu_is():
    chains = []

    def step(query, layer):
        chains.append(layer)
        return query + layer

    layers = [jnp.full(4, float(i)) for i in range(3)]
    taken = timing.time_per_layer(step, jnp.ones(4), layers, repeats=2)
    assert len(chains) == len(layers)  # traced once
    assert taken.wall > 0
    assert (taken.device, taken.best, taken.timed_by) == (None, taken.wall, "clock")
    assert (LayerTime(2.0, 1.0).best, LayerTime(2.0, 1.0).timed_by) == (1.0, "device")


def test_calls_are_waited_for_once_a_repeat():
    waited = []
    times = timing.seconds_of_calls(lambda x: x + 1, 1, repeats=3, at_least=0.0, wait=waited.append)
    assert len(times) == 3
    assert waited == [2] * (2 + 3)


def test_kernels_are_counted_in_the_first_gpus_streams_only():
    def plane(name, **lines):
        return SimpleNamespace(
            name=name,
            lines=[
                SimpleNamespace(
                    name=line, events=[SimpleNamespace(duration_ns=ns) for ns in durations]
                )
                for line, durations in lines.items()
            ],
        )

    planes = [
        plane("/host:CPU", **{"Stream #1": [1e9]}),
        plane("/device:GPU:0", **{"Stream #1": [250, 500], "Stream #2": [250], "XLA Ops": [9e9]}),
        plane("/device:GPU:1", **{"Stream #1": [1e9]}),
    ]
    assert timing.seconds_of_kernels(planes) == pytest.approx(1e-6)
    assert timing.seconds_of_kernels([]) == 0


def test_a_steps_time_by_groups_of_kernels():
    """Two steps; a wait for another device does not count, and names are told without numbers."""
    times = {
        "body_mosaic_gpu_kernel": [50e3, 50e3],
        "gemm_fusion_dot_18": [20e3, 20e3],
        "gemm_fusion_dot_19": [10e3, 10e3],
        "nvjet_sm90_tss_192x64": [5e3, 5e3],
        "all_reduce_7_0_fusion_1": [900e3, 10e3, 10e3, 10e3],
        "ncclDevKernel_AllGather_RING_LL": [7e3, 7e3],
        "loop_reduce_fusion_3": [2e3, 2e3],
    }
    events = [
        SimpleNamespace(name=name, duration_ns=ns) for name, each in times.items() for ns in each
    ]
    line = SimpleNamespace(name="Stream #1", events=events)
    plane = SimpleNamespace(name="/device:GPU:0 (H200)", lines=[line])
    found = time_by_group([plane], steps=2)
    assert found["microseconds"] == {"sums": 27, "attention": 50, "products": 35, "rest": 2}
    assert found["launches"] == 8
    assert found["kernels"][:2] == [["body_mosaic_gpu_kernel", 1, 50], ["gemm_fusion_dot", 2, 15]]


def test_a_profile_takes_a_gpu():
    with pytest.raises(NotImplementedError, match=r"--profile takes a GPU.*: got cpu"):
        measure_decoding(
            None, None, None, 1, implementation=None, steps=(1, 2), repeats=1, profile=True
        )


def test_layers_are_too_many_for_a_cache_and_few_enough_for_the_memory():
    assert SHAPE.layers == 16
    assert DecodeShape(16, 32, 1, 8192, 128).layers == 2
    assert DecodeShape(16, 32, 1, 32768, 128).layers == 1


def test_fp8_attention_is_attention_but_for_three_bits_of_mantissa():
    query, (key, value) = SHAPE.query(), SHAPE.layer(0)
    key = key * jnp.asarray([1.0, 300.0], jnp.bfloat16)[:, None]  # heads need scales of their own
    layer = baselines.to_fp8(key), baselines.to_fp8(value)
    (key8, key_scale), (value8, value_scale) = layer
    assert key8.dtype == value8.dtype == jnp.float8_e4m3fn
    assert key_scale.shape == (2, 1, 2, 1)
    found = baselines.fp8_attention(query, layer).astype(jnp.float32)

    def attend(key, value):
        exact = (x.astype(jnp.float32) for x in (query, key, value))
        return jax.nn.dot_product_attention(*exact, implementation="xla")

    def apart(expected):
        return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))

    raised = (x.astype(jnp.float32) for x in (key8, value8))
    scaled = (x * s for x, s in zip(raised, (key_scale, value_scale), strict=True))
    assert apart(attend(*scaled)) < 0.02  # bfloat16
    assert apart(attend(key, value)) < 0.2


def test_baselines_that_cannot_run_here_are_left_out_and_say_so(capsys):
    measured = baselines.measure_baselines(SHAPE)
    assert set(measured.times) == {"xla", "xla_fp8"}
    assert set(measured.left_out) == {"cudnn", "torch"}
    assert "torch is left out: " in capsys.readouterr().err
    assert measured.strongest() == "xla"
    assert measured.microseconds(baselines.FP8_BASELINES) == {
        "xla_fp8": pytest.approx(1e6 * measured.times["xla_fp8"].best)
    }
    assert baselines.measure_baselines(SHAPE, ()).strongest() is None


@pytest.mark.parity  # where PyTorch is installed
def test_torch_is_timed_by_events_around_a_graph_and_frees_its_memory(monkeypatch):
    """PyTorch's attention itself on the CPU, with a device that does nothing."""
    torch = pytest.importorskip("torch")
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            calls.append("record")

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 112.0  # milliseconds, of 7 replays of 16 layers

    class Graph:
        def __init__(self, graph=None, capture_error_mode=None):
            pass

        def __enter__(self):
            calls.append("capture")

        def __exit__(self, *_):
            pass

        def replay(self):
            calls.append("replay")

    fake = {
        "is_available": lambda: True,
        "synchronize": lambda: None,
        "empty_cache": lambda: calls.append("empty"),
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": Graph,
    }
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda size, dtype, device: randn(size, dtype=dtype))
    taken = baselines.torch_attention(SHAPE)
    assert taken.device == pytest.approx(1e-3)
    assert taken.wall > 0
    assert calls == ["capture", *(["record", *["replay"] * 7, "record"] * 7), "empty"]


def test_a_row_compares_with_cudnn_and_with_the_strongest_over_bf16():
    times = {
        "cudnn": LayerTime(9e-6, 6e-6),
        "torch": LayerTime(5e-6, None),
        "xla_fp8": LayerTime(4e-6, 3e-6),
    }
    row = kernel.compare(LayerTime(3e-6, 1e-6), Measured(times, {"xla": "ValueError: no"}))
    assert row["bf16_microseconds"] == pytest.approx({"cudnn": 6.0, "torch": 5.0})
    assert row["bf16_wall_microseconds"] == pytest.approx({"cudnn": 9.0, "torch": 5.0})
    assert row["fp8_microseconds"] == pytest.approx({"xla_fp8": 3.0})
    assert row["fp8_wall_microseconds"] == pytest.approx({"xla_fp8": 4.0})
    assert row["baselines_timed_by"] == {"cudnn": "device", "torch": "clock", "xla_fp8": "device"}
    assert row["baselines_left_out"] == {"xla": "ValueError: no"}
    assert row["ratio_to_cudnn"] == pytest.approx(6.0)
    assert row["strongest_baseline"] == "torch"
    assert row["ratio_to_strongest"] == pytest.approx(5.0)
    alone = kernel.compare(LayerTime(3e-6, 1e-6), Measured({}, {}))
    assert alone["ratio_to_cudnn"] is alone["ratio_to_strongest"] is None


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Calls `vkq bench kernel` as on a GPU whose kernel takes a microsecond; gives its record."""
    monkeypatch.setattr(kernel.support, "device_reason", lambda: None)
    monkeypatch.setattr(kernel, "process_pool", ThreadPoolExecutor)
    monkeypatch.setattr(kernel, "bandwidth", lambda: 1e12)
    monkeypatch.setattr(kernel.Setup, "lower", lambda setup: jax.jit(lambda *_: 0.0).lower(1, [1]))
    monkeypatch.setattr(kernel.Setup, "banks", lambda setup: [1])
    monkeypatch.setattr(kernel.Setup, "query", lambda setup: 1)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    monkeypatch.setattr(kernel, "time_of_calls", lambda *_, **__: LayerTime(2e-6, 1e-6))
    monkeypatch.setattr(kernel, "error", lambda *_, **__: {"relative_error": 0.0})
    case = kernel.Case(2, 2, 3, 256, "signs8", text=8, head_dim=64)
    monkeypatch.setitem(kernel.CASES, "gqa7-8k-signs8", case)

    def call(*arguments, code=0):
        path = tmp_path / "kernel.json"
        with pytest.raises(SystemExit) as exit_:
            main(["bench", "kernel", "--cases", "gqa7-8k-signs8", "--out", str(path), *arguments])
        assert exit_.value.code == code
        return json.loads(path.read_text())

    return call


def test_the_command_times_the_baselines_it_is_told_to(bench, capsys, monkeypatch):
    timed = {}

    def baseline(name):
        return lambda shape: timed.update({name: shape}) or LayerTime(8e-6, 4e-6)

    monkeypatch.setattr(baselines, "TIMED", {name: baseline(name) for name in baselines.BASELINES})
    record = bench("--baselines", "torch,xla_fp8")
    assert timed == dict.fromkeys(("torch", "xla_fp8"), DecodeShape(2, 2, 3, 264, 64))
    (row,) = record["rows"]
    assert (record["failed"], row["baselines_left_out"]) == ([], {})
    assert (row["strongest_baseline"], row["ratio_to_cudnn"]) == ("torch", None)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "torch 4.0 us  xla_fp8 4.0 us  kernel 1.0 us (by the clock 2.0)" in line
    assert "4.00x (strongest: torch)" in line
    bench()
    assert set(timed) == set(baselines.BASELINES)


def test_a_row_without_baselines_as_json(bench, capsys):
    record = bench("--baselines", "none", "--json")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == record
    assert "kernel 1.0 us" in captured.err
    assert record["rows"][0]["strongest_baseline"] is None


def test_a_case_that_fails_fails_the_command_and_stays_in_the_record(bench, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(kernel, "error", broken)
    monkeypatch.setattr(baselines, "TIMED", {"xla": broken})
    message = "unexpected RuntimeError: broken; `vkq --traceback ...` shows where from"
    failed = {"case": "gqa7-8k-signs8", "message": message}
    assert bench("--baselines", "xla", code=1)["failed"] == [failed]
    assert capsys.readouterr().err.splitlines() == [
        "preparing gqa7-8k-signs8 ...",
        f"xla is left out: {message}",
        f"gqa7-8k-signs8  failed: {message}",
    ]


def test_a_case_that_does_not_compile_stays_in_the_record(bench, monkeypatch):
    def broken(setup):
        raise NotImplementedError("no such instruction")

    monkeypatch.setattr(kernel.Setup, "lower", broken)
    (failed,) = bench("--baselines", "none", code=1)["failed"]
    assert failed == {"case": "gqa7-8k-signs8", "message": "no such instruction"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--emulate"], "--emulate needs --check"),
        (["--check", "--out", "x"], "--check writes no file and has cases of its own"),
        (["--cases", "mha-9k"], "--cases: expected some of mha-32k, "),
        (["--cases", ""], "--cases: expected names, comma-separated, got ''"),
        (["--baselines", "flash"], "--baselines: expected some of cudnn, "),
        (["--tuning", "1,2"], "--tuning: expected WARPS,TEAM,SPLITS,QUERIES that fit together"),
        (["--check"], "needs an NVIDIA GPU"),
        ([], "needs an NVIDIA GPU"),
    ],
)
def test_bad_options_are_one_clear_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "kernel", *arguments])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("vkq: error: ")
    assert message in line


@pytest.mark.parametrize("codes", ["vkq-1bit", "vkq-half-tables", "vkq-2bit-plan2"])
def test_random_banks_have_the_form_of_coded_ones(codes):
    case = kernel.Case(1, 2, 1, 600, codes, head_dim=64)
    banks, *_ = jax.eval_shape(lambda: kernel.random_banks(case, 0))
    shape = Shape(batch=1, num_heads=2, head_dim=64, visual=((600, (600,)),), text=(5,))
    layer = jax.eval_shape(lambda: random_layer(shape, case.dictionary)[1])
    tiled = jax.eval_shape(pallas_kernels.tile, layer.visual[0])
    for got, expected in ((banks.packed.key, tiled.key), (banks.packed.value, tiled.value)):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert (x.shape[1:], x.dtype) == (y.shape, y.dtype)


def test_checks_run_emulated_without_a_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(kernel, "check", lambda launch: taken.append(launch) or True)
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "kernel", "--check", "--emulate"])
    assert (exit_.value.code, taken) == (0, [kernel.emulated_launch])


def test_torch_version_is_recorded_where_it_is_installed():
    installed = importlib.util.find_spec("torch") is not None
    assert (baselines.torch_version() is not None) == installed


def test_a_few_rows_are_prepared_and_then_timed_before_the_next(bench, monkeypatch):
    events = []
    monkeypatch.setattr(kernel, "_MEASURING", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(kernel, "error", lambda *_, **__: events.append("prepared") or {})
    monkeypatch.setattr(
        kernel, "time_of_calls", lambda *_, **__: events.append("timed") or LayerTime(2e-6, 1e-6)
    )
    monkeypatch.setattr(kernel, "_line", str)
    bench("--baselines", "none", "--tuning", "4,4,1,3", "--tuning", "4,2,1,3")
    assert events == [*["prepared"] * 2, *["timed"] * 2, "prepared", "timed"]


def test_processes_share_the_gpu_and_leave_what_has_not_begun():
    with process_pool(1) as pool:
        shares = pool.submit(os.getenv, "XLA_PYTHON_CLIENT_PREALLOCATE")
        assert (shares.result(), pool.submit(os.getpid).result() == os.getpid()) == ("false", False)
        waiting = [pool.submit(time.sleep, 0.2) for _ in range(40)]
    assert waiting[-1].cancelled()
