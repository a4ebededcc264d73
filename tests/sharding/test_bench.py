"""`vkq bench` on a mesh: a row of its devices together, and what each of them has and sends."""

import pytest

from vkq_apps.bench.throughput import ThroughputSetup, measure_throughput

BUDGET = 1e-4  # GB a device


@pytest.mark.mesh
def test_throughput_fills_the_budget_of_each_device():
    row = {}
    setup = ThroughputSetup(
        shape="tiny",
        preset="signs-1bit",
        implementation=None,
        budget_gb=BUDGET,
        round_to=0,
        short_steps=1,
        long_steps=16,
        repeats=1,
        mesh="data=2,model=4",
    )
    measure_throughput(setup, row, lambda _: None)
    assert row["devices"] == len(row["peak_bytes_per_device"]) == 8
    held = row["batch"] * row["bytes_per_sequence"]["total"]
    assert 0.8 * 8e9 * BUDGET < held <= 8e9 * BUDGET
    assert row["batch"] % 2 == 0
    # Besides the banks a device has lengths and positions.
    assert held / 8 <= row["cache_bytes_per_device"] <= 1.01 * held / 8
    assert row["tokens_per_second"] > 0
    assert row["collectives_per_step"]["all-reduce"] > 0
    assert row["wire_bytes_per_step"] > 0
