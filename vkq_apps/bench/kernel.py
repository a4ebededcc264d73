"""The fused kernel against other attention: `vkq bench kernel --out FILE`.

One row a case: time of its baselines (bf16 by cuDNN, XLA and PyTorch, fp8 by XLA) and of the kernel
over the same number of visible positions, the kernel's error against float32, and the part of the
measured bandwidth it reaches. A baseline that cannot run is left out, and the row says why.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from pallas_kernels.attention import support
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.launch import Launch, emulated_launch, gpu_launch
from vkq_apps.bench.baselines import (
    BF16_BASELINES,
    FP8_BASELINES,
    DecodeShape,
    Measured,
    measure_baselines,
    torch_version,
)
from vkq_apps.bench.cases import CASES, CHECKS, Calibration, Case
from vkq_apps.bench.kernel_banks import random_banks
from vkq_apps.bench.kernel_error import attend, error
from vkq_apps.bench.processes import process_pool, take_memory_as_needed
from vkq_apps.bench.timing import LayerTime, bandwidth, chain_of_layers, time_of_calls
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.provenance import provenance
from vkq_apps.files.results_file import source_digest, write_json
from vkq_apps.terminal.console import log
from vkq_apps.terminal.endings import closing_pool
from vkq_apps.terminal.errors import describe

__all__ = [
    "CASES",
    "Case",
    "Setup",
    "check_without_times",
    "measure_cases",
    "random_banks",
    "read_tuning",
    "require_gpu",
]


_CHECKING = 16  # processes at most that check small cases, half a gigabyte of the GPU each
_MEASURING = 12  # processes at most that prepare rows, up to ten gigabytes of the GPU each


@dataclasses.dataclass(frozen=True)
class Setup:
    """The operations that a row measures, and the kernel's part of them."""

    name: str
    case: Case
    tuning: TuningConfig | None

    @property
    def layers(self) -> int:
        """Layers of codes in about 2 GB, which no cache holds; 1 to 16."""
        return max(1, min(16, round(2e9 / self.case.bytes)))

    @property
    def shape(self) -> DecodeShape:
        """The step that baselines take."""
        case = self.case
        return DecodeShape(case.batch, case.kv_heads, case.queries, case.visible, case.head_dim)

    def query(self) -> jax.Array:
        """A query [B, K, Q, H] of the usual size."""
        case = self.case
        shape = (case.batch, case.kv_heads, case.queries, case.head_dim)
        return case.head_dim**-0.5 * jax.random.normal(jax.random.key(0), shape)

    def banks(self) -> list[Any]:
        """Random banks of all layers."""
        return [random_banks(self.case, seed) for seed in range(self.layers)]

    def lower(self) -> jax.stages.Lowered:
        """The chain of layers, to be compiled."""
        step = functools.partial(_output, self.case.calibration, self.tuning)
        layer = jax.eval_shape(functools.partial(random_banks, self.case, 0))
        return chain_of_layers(step).lower(jax.eval_shape(self.query), [layer] * self.layers)


def _output(
    calibration: Calibration | None, tuning: TuningConfig | None, query: jax.Array, layer: Any
) -> jax.Array:
    return attend(calibration, gpu_launch, tuning, query, *layer)[0]


Taken = tuple[LayerTime, dict[str, float]]  # a step's time, and the kernel's errors

_PREPARED: dict[Setup, tuple[jax.stages.Compiled, dict[str, float]]] = {}  # of this process


def _prepared(setups: Sequence[Setup], pools: Sequence[Executor]) -> list[Callable[[], Taken]]:
    """Functions that time a setup, or raise what its preparation or its run raised.

    All setups are prepared at once, each in the process of a pool of its own, and are ready when
    this returns: times are taken undisturbed.
    """
    log.print(f"preparing {', '.join(dict.fromkeys(setup.name for setup in setups))} ...")
    homes = list(zip(setups, pools, strict=False))
    waiting = [pool.submit(_prepare, setup) for setup, pool in homes]
    for future in waiting:
        future.exception()  # waits
    return [
        functools.partial(_take, future, pool, setup)
        for future, (setup, pool) in zip(waiting, homes, strict=True)
    ]


def _prepare(setup: Setup) -> None:
    """Compiles a setup's chain in this process, and finds the kernel's errors."""
    found = error(setup.case, gpu_launch, setup.tuning, ragged=False)
    chain = setup.lower().compile()
    jax.block_until_ready(chain(setup.query(), setup.banks()))  # kernels compile as they start
    _PREPARED[setup] = chain, found


def _take(prepared: Future[None], pool: Executor, setup: Setup) -> Taken:
    """A setup's time, taken in the process that has prepared it."""
    prepared.result()
    return pool.submit(_time, setup).result()


def _time(setup: Setup) -> Taken:
    chain, errors = _PREPARED.pop(setup)
    taken = time_of_calls(chain, setup.query(), setup.banks(), steps=setup.layers)
    return taken, errors


def measure(
    setup: Setup, take: Callable[[], Taken], ceiling: float, others: Measured
) -> dict[str, Any]:
    """One row of the table."""
    name, case, tuning = setup.name, setup.case, setup.tuning
    taken, errors = take()
    row = {
        "case": name,
        **dataclasses.asdict(case),
        "tuning": None if tuning is None else dataclasses.asdict(tuning),
        **compare(taken, others),
        "part_of_bandwidth": case.bytes / taken.best / ceiling,
        **errors,
    }
    print(_line(row), tuning or "", flush=True)
    return row


def compare(taken: LayerTime, others: Measured) -> dict[str, Any]:
    """Ratios of the kernel's time to the others'; None where the other was not measured."""
    bf16_us, strongest = others.microseconds(BF16_BASELINES), others.strongest()
    ratios = {baseline: us / (1e6 * taken.best) for baseline, us in bf16_us.items()}
    return {
        "microseconds": 1e6 * taken.best,
        "wall_microseconds": 1e6 * taken.wall,
        "timed_by": taken.timed_by,
        "bf16_microseconds": bf16_us,
        "bf16_wall_microseconds": others.wall_microseconds(BF16_BASELINES),
        "fp8_microseconds": others.microseconds(FP8_BASELINES),
        "fp8_wall_microseconds": others.wall_microseconds(FP8_BASELINES),
        "baselines_timed_by": {baseline: time.timed_by for baseline, time in others.times.items()},
        "baselines_left_out": others.left_out,
        "strongest_baseline": strongest,
        "ratio_to_cudnn": ratios.get("cudnn"),
        "ratio_to_strongest": None if strongest is None else ratios[strongest],
    }


def _line(row: dict[str, Any]) -> str:
    """A row in short, for the terminal; times in microseconds."""
    times = row["bf16_microseconds"] | row["fp8_microseconds"]
    strongest = f"strongest: {row['strongest_baseline']}"
    ratios = {"cudnn": row["ratio_to_cudnn"], strongest: row["ratio_to_strongest"]}
    return "  ".join(
        [
            f"{row['case']:22}",
            *(f"{baseline} {us:.1f} us" for baseline, us in times.items()),
            f"kernel {row['microseconds']:.1f} us (by the clock {row['wall_microseconds']:.1f})",
            *(f"{ratio:.2f}x ({to})" for to, ratio in ratios.items() if ratio is not None),
            f"{row['part_of_bandwidth']:.0%} of the bandwidth"
            + ("" if row["goal"] is None else f" (goal {row['goal']:.0%})"),
            f"error {row['relative_error']:.1e}",
        ]
    )


def check(launch: Launch) -> bool:
    """Errors of small cases with ragged lengths; True where all are within 3e-4."""
    good, alike = True, functools.partial(error, launch=launch, ragged=True)
    with _workers(launch) as workers:
        # The last ones take longest.
        waiting = [workers.submit(alike, case, tuning=tuning) for case, tuning in CHECKS[::-1]]
        for (case, tuning), found in zip(CHECKS, waiting[::-1], strict=True):
            try:
                found = found.result()
            except Exception as failure:
                log.print(describe(failure), soft_wrap=True)
                found = {"relative_error": math.inf, "logsumexp_error": math.inf}
            passed = found["relative_error"] < 3e-4 and found["logsumexp_error"] < 1e-3
            good &= passed
            print("ok  " if passed else "BAD ", found, case, tuning, flush=True)
    return good


def _workers(launch: Launch) -> contextlib.AbstractContextManager[Executor]:
    """For nearly nothing but compilation: processes; emulated there is little of it: threads."""
    if launch is not gpu_launch:
        return closing_pool(ThreadPoolExecutor(os.cpu_count()))
    return process_pool(min(_CHECKING, os.cpu_count() or 1))


def read_tuning(text: str) -> TuningConfig:
    """A tuning from "WARPS,TEAM,SPLITS,QUERIES"."""
    try:
        return TuningConfig(*map(int, text.split(",")))
    except (TypeError, ValueError) as error:
        wanted = "expected WARPS,TEAM,SPLITS,QUERIES that fit together"
        raise ValueError(f"--tuning: {wanted}, got {text!r}") from error


def check_without_times(emulate: bool) -> bool:
    """Whether the kernel computes the small cases right, on the GPU or emulated without one."""
    if not emulate:
        require_gpu()
    return check(emulated_launch if emulate else gpu_launch)


def require_gpu() -> None:
    """Raises NotImplementedError where the kernel cannot run."""
    reason = support.device_reason()
    if reason:
        raise NotImplementedError(f"{reason}; --check --emulate runs the small cases without one")


def measure_cases(
    cases: Sequence[str],
    baselines: Sequence[str],
    tunings: Sequence[TuningConfig],
    out: Path | None,
) -> dict[str, Any]:
    """The table: each case with the default tuning and with `tunings`, written row by row.

    Raises:
        NotImplementedError: the kernel cannot run here.
        ValueError: `out` cannot be written to, or is a file of something else.
    """
    if out is not None:
        check_record_place(out, "vkq bench kernel")
    take_memory_as_needed()
    require_gpu()
    ceiling = bandwidth()
    print(f"{jax.devices()[0].device_kind}, copy {ceiling / 1e12:.2f} TB/s", flush=True)
    record: dict[str, Any] = {
        "command": "vkq bench kernel",
        **provenance(),
        "source": source_digest(),
        "torch": torch_version(),
        "bandwidth": ceiling,
        "rows": [],
        "failed": [],
    }
    measured = functools.cache(measure_baselines)  # many cases have the same shape
    setups = [Setup(name, CASES[name], tuning) for name in cases for tuning in (None, *tunings)]
    count = min(_MEASURING, os.cpu_count() or 1, len(setups))
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(process_pool(1)) for _ in range(count)]
        # A few at a time, and a file after each row: little is lost when time runs out.
        for some in itertools.batched(setups, count):
            for setup, take in zip(some, _prepared(some, pools), strict=True):
                try:
                    others = measured(setup.shape, tuple(baselines))
                    record["rows"].append(measure(setup, take, ceiling, others))
                except Exception as failure:
                    message = describe(failure)
                    name = f"{setup.name} {setup.tuning or ''}"
                    log.print(f"{name} failed: {message}", soft_wrap=True)
                    record["failed"].append({"case": setup.name, "message": message})
                write_json(out, record)
    return record
