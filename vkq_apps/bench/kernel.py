"""The fused kernel against bf16 attention: `python -m vkq_apps.bench.kernel --out FILE`.

One row a case: time of cuDNN's and XLA's bf16 attention and of the kernel over the same number of
positions, the kernel's error against float32, and the part of the measured bandwidth it reaches.
Banks are random words: attention does not care what they mean.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import TiledLevels, TiledSigns, layouts, mosaic_gpu
from pallas_kernels.launch import Launch, emulated_launch, gpu_launch
from pallas_kernels.problem import Tiling
from pallas_kernels.visual_attention import attend_visual
from vkq_apps.bench.timing import seconds_per_layer
from vkq_apps.provenance import provenance
from vkq_jax.cache import VisualBank
from vkq_jax.post_scaling import scores, weighted_sum

__all__ = ["CASES", "Case", "main", "random_bank"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape, and the ratio to cuDNN that is the goal."""

    batch: int
    kv_heads: int
    queries: int
    positions: int
    codes: str = "levels"
    head_dim: int = 128
    group_size: int | None = None
    goal: float | None = None

    def bytes(self, bits: float) -> float:
        """Of keys and values, at so many bits an element."""
        return self.batch * self.kv_heads * self.positions * self.head_dim * 2 * bits / 8

    @property
    def bits_stored(self) -> float:
        """Bits an element, scales per position included, tables per group not."""
        return 1 + {"levels": 0, "signs8": 8, "signs16": 16}[self.codes] / self.head_dim


CASES = {
    "mha-32k": Case(16, 32, 1, 32768, goal=14.5),
    "mha-8k": Case(16, 32, 1, 8192, goal=13.0),
    "mha-2304": Case(16, 32, 1, 2304, goal=11.0),
    "mha-32k-signs8": Case(16, 32, 1, 32768, "signs8", goal=13.0),
    "mha-8k-signs8": Case(16, 32, 1, 8192, "signs8"),
    "mha-2304-signs8": Case(16, 32, 1, 2304, "signs8"),
    "mha-576-signs8": Case(64, 32, 1, 576, "signs8"),
    "mha-32k-groups-1024": Case(16, 32, 1, 32768, group_size=1024),
    "mha-32k-groups-256": Case(16, 32, 1, 32768, group_size=256),
    "b1-mha-32k": Case(1, 32, 1, 32768, goal=10.0),
    "gqa4-32k": Case(16, 8, 4, 32768, goal=12.0),
    "gqa4-32k-signs8": Case(16, 8, 4, 32768, "signs8", goal=11.0),
    "gqa8-32k": Case(16, 4, 8, 32768, goal=9.5),
    "gqa7-8k-signs8": Case(16, 4, 7, 8192, "signs8"),
    "h64-8k-signs8": Case(16, 32, 1, 8192, "signs8", head_dim=64),
}

# Small shapes for --check: every code path, lengths that end inside and at the edge of blocks.
CHECKS = [
    (Case(2, 2, queries, positions, codes, head_dim, group_size), Tiling(1, warps, splits))
    for head_dim in (128, 64)
    for codes, group_size, queries, positions, warps, splits in (
        ("levels", None, 1, 2304, 4, 1),
        ("levels", 512, 4, 1700, 2, 2),
        ("signs8", None, 7, 700, 4, 2),
        ("signs16", None, 2, 2304, 1, 1),
    )
]


def random_bank(case: Case, seed: int, *, ragged: bool = False) -> VisualBank:
    """A bank of random codes, tiled. Ragged: the first sequence is full, the next is empty."""
    rng = np.random.default_rng(seed)
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    lead = (case.batch, case.kv_heads)
    blocks = layouts.num_blocks(case.positions)
    group_size = case.group_size or case.positions
    groups = -(-case.positions // group_size)

    def tensor(side):
        words = (*lead, blocks, case.head_dim // 16, 32, 4)
        packed = jax.random.bits(next(keys), words, jnp.uint32)
        shared: dict[str, Any] = {
            "side": side,
            "num_positions": case.positions,
            "head_dim": case.head_dim,
        }
        table = (*lead, groups, case.head_dim)
        centre = 0.3 * jax.random.normal(next(keys), table)
        if case.codes == "levels":
            step = jax.random.uniform(next(keys), table, minval=0.5, maxval=2.5)
            lower, upper = ((centre + s * step).astype(jnp.bfloat16) for s in (-0.5, 0.5))
            return TiledLevels(packed, lower, upper, group_size=group_size, **shared)
        positions = jnp.exp(0.3 * jax.random.normal(next(keys), (*lead, case.positions)))
        if case.codes == "signs8":
            scale = jnp.clip(jnp.round(8 * jnp.log2(positions)) + 128, 1, 255).astype(jnp.uint8)
        else:
            scale = positions.astype(jnp.bfloat16)
        return TiledSigns(
            packed,
            centre.astype(jnp.bfloat16),
            layouts.tile_scales(scale),
            rotated=True,
            score_error_factor=0.01,
            **shared,
        )

    length = np.full(case.batch, case.positions)
    if ragged:
        length[1:] = rng.integers(0, case.positions, case.batch - 1)
        length[1] = 0
    return VisualBank(tensor("key"), tensor("value"), jnp.asarray(length, jnp.int32))


def error(case: Case, launch: Launch, tiling: Tiling | None, *, ragged: bool) -> dict[str, float]:
    """Relative error of the output and absolute one of the log-sum-exp against float32."""
    case = dataclasses.replace(case, batch=min(case.batch, 2))
    bank = random_bank(case, seed=time.time_ns() % 2**31, ragged=ragged)
    shape = (case.batch, case.kv_heads, case.queries, case.head_dim)
    query = 2 * case.head_dim**-0.5 * jax.random.normal(jax.random.key(5), shape)
    kernel = jax.jit(functools.partial(attend_visual, launch=launch, tiling=tiling))
    output, logsumexp = kernel(query, bank)

    @jax.jit
    def reference(query, bank):
        with jax.default_matmul_precision("highest"):
            logits = scores(query, bank.key)
            visible = jnp.arange(case.positions) < bank.length[:, None, None, None]
            logits = jnp.where(visible, logits, -jnp.inf)
            expected = jax.nn.logsumexp(logits, -1)
            safe = jnp.where(jnp.isfinite(expected), expected, 0.0)
            weights = jnp.where(visible, jnp.exp(logits - safe[..., None]), 0.0)
            return weighted_sum(weights, bank.value), expected

    expected, expected_logsumexp = reference(query, bank)
    seen = jnp.isfinite(expected_logsumexp)
    if not bool(jnp.all(jnp.isfinite(output)) & jnp.all(jnp.isfinite(logsumexp) == seen)):
        raise AssertionError("not finite, or finite where nothing is visible")
    difference = jnp.where(seen[..., None], output - expected, 0.0)
    norm = jnp.linalg.norm(jnp.where(seen[..., None], expected, 0.0))
    apart = jnp.where(seen, logsumexp - expected_logsumexp, 0.0)
    return {
        "relative_error": float(jnp.linalg.norm(difference) / norm),
        "logsumexp_error": float(jnp.abs(apart).max()),
    }


def bandwidth() -> float:
    """Bytes a second that a copy reads and writes: the ceiling."""
    x = [jnp.full((2**28,), i, jnp.float32) for i in range(2)]
    copy = jax.jit(lambda x: [v + 1 for v in x])
    jax.block_until_ready(copy(x))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(copy(x))
        times.append(time.perf_counter() - start)
    return sum(2 * v.nbytes for v in x) / sorted(times)[2]


@functools.cache
def rivals(case: Case) -> dict[str, float]:
    """Seconds of bf16 attention over the same positions, by who does it."""
    heads = case.kv_heads * case.queries
    query = jnp.ones((case.batch, 1, heads, case.head_dim), jnp.bfloat16)
    shape = (case.batch, case.positions, case.kv_heads, case.head_dim)
    layers = max(1, min(16, round(4e9 / case.bytes(16))))
    banks = [
        tuple(jax.random.normal(jax.random.key(2 * i + j), shape, jnp.bfloat16) for j in (0, 1))
        for i in range(layers)
    ]
    times = {}
    names: tuple[Literal["cudnn", "xla"], ...] = ("cudnn", "xla")
    for name in names:

        def step(query, bank, name: Literal["cudnn", "xla"] = name):
            return jax.nn.dot_product_attention(query, *bank, implementation=name)

        try:
            times[name] = seconds_per_layer(step, query, banks)
        except Exception:
            traceback.print_exc()
    return times


def measure(name: str, case: Case, tiling: Tiling | None, ceiling: float) -> dict[str, Any]:
    """One row of the table."""
    bf16 = rivals(dataclasses.replace(case, codes="levels", group_size=None, goal=None))
    shape = (case.batch, case.kv_heads, case.queries, case.head_dim)
    query = case.head_dim**-0.5 * jax.random.normal(jax.random.key(0), shape)
    layers = max(1, min(16, round(2e9 / case.bytes(case.bits_stored))))
    banks = [random_bank(case, seed) for seed in range(layers)]

    def step(query, bank):
        return attend_visual(query, bank, gpu_launch, tiling)[0]

    seconds = seconds_per_layer(step, query, banks)
    stored = case.bytes(case.bits_stored)
    row = {
        "case": name,
        **dataclasses.asdict(case),
        "tiling": None if tiling is None else dataclasses.asdict(tiling),
        "microseconds": 1e6 * seconds,
        "bf16_microseconds": {rival: 1e6 * t for rival, t in bf16.items()},
        "ratio_to_cudnn": bf16.get("cudnn", math.nan) / seconds,
        "part_of_bandwidth": stored / seconds / ceiling,
        **error(case, gpu_launch, tiling, ragged=False),
    }
    print(
        f"{name:22} cudnn {row['bf16_microseconds'].get('cudnn', math.nan):8.1f} us  xla "
        f"{row['bf16_microseconds'].get('xla', math.nan):8.1f} us  1 bit {1e6 * seconds:7.1f} us  "
        f"{row['ratio_to_cudnn']:5.2f}x (goal {case.goal})  {row['part_of_bandwidth']:.0%} of the "
        f"bandwidth  error {row['relative_error']:.1e}  {tiling or ''}",
        flush=True,
    )
    return row


def check(launch: Launch) -> bool:
    """Errors of small cases with ragged lengths; True where all are within 3e-4."""
    good = True
    for case, tiling in CHECKS:
        try:
            found = error(case, launch, tiling, ragged=True)
        except Exception:
            traceback.print_exc()
            found = {"relative_error": math.inf, "logsumexp_error": math.inf}
        passed = found["relative_error"] < 3e-4 and found["logsumexp_error"] < 1e-3
        good &= passed
        print("ok  " if passed else "BAD ", found, case, tiling, flush=True)
    return good


def main(arguments: list[str] | None = None) -> int:
    """Runs the checks or the table; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--check", action="store_true", help="correctness of small cases only")
    parser.add_argument("--emulate", action="store_true", help="--check without a GPU")
    parser.add_argument(
        "--tiling",
        action="append",
        default=[],
        metavar="WARPGROUPS,WARPS_PER_ROW,SPLITS,QUERY_BYTES",
        help="also try this tiling; repeatable",
    )
    options = parser.parse_args(arguments)
    if options.check:
        return 0 if check(emulated_launch if options.emulate else gpu_launch) else 1
    reason = mosaic_gpu.device_reason()
    if reason:
        print(f"vkq: error: {reason}", file=sys.stderr)
        return 2
    tilings = [None, *(Tiling(*map(int, text.split(","))) for text in options.tiling)]
    ceiling = bandwidth()
    print(f"{jax.devices()[0].device_kind}, copy {ceiling / 1e12:.2f} TB/s", flush=True)
    record: dict[str, Any] = {**provenance(), "bandwidth": ceiling, "rows": [], "failed": []}
    for name in options.cases:
        for tiling in tilings:
            try:
                record["rows"].append(measure(name, CASES[name], tiling, ceiling))
            except Exception:
                print(f"{name} {tiling or ''} failed", flush=True)
                traceback.print_exc()
                record["failed"].append(name)
            if options.out:  # after each row: nothing is lost when time runs out
                options.out.write_text(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
