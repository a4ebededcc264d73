"""The fused kernel against bf16 attention: `python -m vkq_apps.bench.kernel --out FILE`.

One row a case: time of cuDNN's and XLA's bf16 attention and of the kernel over the same number of
positions, the kernel's error against float32, and the part of the measured bandwidth it reaches.
Banks are random words: attention does not care what they mean.
"""

import argparse
import dataclasses
import functools
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
from pallas_kernels.fused import Banks, DenseBank, fused_attention
from pallas_kernels.launch import Launch, emulated_launch, gpu_launch
from pallas_kernels.problem import Tiling
from vkq_apps.bench.results_file import source_digest, write_json
from vkq_apps.bench.timing import LayerTime, bandwidth, time_per_layer
from vkq_apps.provenance import provenance
from vkq_jax.cache import VisualBank
from vkq_jax.post_scaling import scores, weighted_sum

__all__ = ["CASES", "Case", "main", "random_banks"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape, and the ratio to cuDNN that is the goal.

    Attributes:
        codes: "levels", "signs8", "signs16" or "bfloat16", the kernel's own dense path.
        text: positions of a dense bank beside the visual one, in the same launch.
    """

    batch: int
    kv_heads: int
    queries: int
    positions: int
    codes: str = "levels"
    head_dim: int = 128
    group_size: int | None = None
    text: int = 0
    goal: float | None = None

    @property
    def bits_stored(self) -> float:
        """Bits an element of the bank, scales per position included, tables per group not."""
        if self.codes == "bfloat16":
            return 16.0
        return 1 + {"levels": 0, "signs8": 8, "signs16": 16}[self.codes] / self.head_dim

    @property
    def bytes(self) -> float:
        """Of all keys and values."""
        bits = self.positions * self.bits_stored + self.text * 16
        return self.batch * self.kv_heads * self.head_dim * 2 * bits / 8


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
    "b1-mha-32k-signs8": Case(1, 32, 1, 32768, "signs8"),
    "gqa4-32k": Case(16, 8, 4, 32768, goal=12.0),
    "gqa4-32k-signs8": Case(16, 8, 4, 32768, "signs8", goal=11.0),
    "gqa4-3328-signs8": Case(133, 8, 4, 3328, "signs8"),
    "gqa8-32k": Case(16, 4, 8, 32768, goal=9.5),
    "gqa8-32k-signs8": Case(16, 4, 8, 32768, "signs8"),
    "gqa7-32k-signs8": Case(16, 4, 7, 32768, "signs8"),
    "gqa7-8k-signs8": Case(16, 4, 7, 8192, "signs8"),
    "h64-8k-signs8": Case(16, 32, 1, 8192, "signs8", head_dim=64),
    "mha-32k-signs8-text": Case(16, 32, 1, 32768, "signs8", text=256),
    "gqa4-3328-signs8-text": Case(133, 8, 4, 3328, "signs8", text=64),
    "mha-8k-bfloat16": Case(16, 32, 1, 8192, "bfloat16"),
    "gqa4-3328-bfloat16": Case(64, 8, 4, 3328, "bfloat16"),
    "gqa7-8k-bfloat16": Case(16, 4, 7, 8192, "bfloat16"),
}

# Small shapes for --check: every code path, lengths that end inside and at the edge of blocks.
CHECKS = [
    (Case(2, 2, queries, positions, codes, head_dim, group_size, text), tiling)
    for head_dim in (128, 64)
    for codes, group_size, queries, positions, text, tiling in (
        ("levels", None, 1, 2304, 0, Tiling(16, 4)),
        ("levels", 512, 4, 1700, 40, Tiling(8, 2, 2)),
        ("levels", None, 8, 1700, 40, Tiling(16, 16, 2, 4)),
        ("signs8", None, 7, 700, 0, Tiling(16, 4, 4, 4)),
        ("signs8", None, 4, 3328, 130, Tiling(16, 8, 8, 4)),
        ("signs16", None, 2, 2304, 17, Tiling(4, 1)),
        ("signs8", None, 1, 576, 33, Tiling(16, 2)),
        ("bfloat16", None, 4, 700, 40, Tiling(16, 4, 2, 4)),
    )
]


def random_banks(case: Case, seed: int, *, ragged: bool = False) -> tuple[Banks, dict[str, Any]]:
    """Random banks of one layer, and what the queries see of the dense ones.

    Ragged: the first sequence is full, the next has no visual tokens, text lengths vary.
    """
    rng = np.random.default_rng(seed)
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    lead = (1, case.batch, case.kv_heads)
    group_size = case.group_size or case.positions
    groups = -(-case.positions // group_size)

    def tensor(side):
        count = layouts.key_words if side == "key" else layouts.value_words
        words = (*lead, count(case.positions, case.head_dim))
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

    def dense(positions):
        shape = (*lead, positions, case.head_dim)
        return DenseBank(*(jax.random.normal(next(keys), shape, jnp.bfloat16) for _ in range(2)))

    def lengths(positions):
        length = np.full(case.batch, positions)
        if ragged:
            length[1:] = rng.integers(0, positions, case.batch - 1)
        return length

    visual = lengths(case.positions)
    if ragged:
        visual[1] = 0
    visual = jnp.asarray(visual, jnp.int32)
    packed, banks, visible = None, {}, {}
    if case.codes == "bfloat16":
        banks["visual"], visible["visual"] = dense(case.positions), visual[:, None]
    else:
        packed = VisualBank(tensor("key"), tensor("value"), visual)
    if case.text:
        banks["text"] = dense(case.text)
        visible["text"] = jnp.asarray(lengths(case.text), jnp.int32)[:, None]
    return Banks(packed, banks), visible


def reference(query: jax.Array, banks: Banks, visible: dict[str, jax.Array]):
    """Output and log-sum-exp in float32, from the codes' own arithmetic in XLA."""
    with jax.default_matmul_precision("highest"):
        parts, values, masks = [], [], []
        tensors = jax.tree.map(
            lambda x: x[0], (banks.dense, banks.packed and (banks.packed.key, banks.packed.value))
        )
        for name, bank in tensors[0].items():
            key, value = (x.astype(jnp.float32) for x in (bank.key, bank.value))
            parts.append(jnp.einsum("bkqh,bksh->bkqs", query, key))
            values.append(functools.partial(jnp.einsum, "bksh,bkqs->bkqh", value))
            masks.append(jnp.arange(key.shape[-2]) < visible[name][:, :1, None, None])
        if banks.packed is not None:
            key, value = tensors[1]
            parts.append(scores(query, key))
            values.append(lambda weights: weighted_sum(weights, value))
            seen = banks.packed.length[:, None, None, None]
            masks.append(jnp.arange(parts[-1].shape[-1]) < seen)
        logits = [jnp.where(mask, x, -jnp.inf) for x, mask in zip(parts, masks, strict=True)]
        total = jax.nn.logsumexp(jnp.concatenate(logits, -1), -1)
        safe = jnp.where(jnp.isfinite(total), total, 0.0)[..., None]
        output = sum(f(jnp.exp(x - safe)) for f, x in zip(values, logits, strict=True))
        return output, total


def error(case: Case, launch: Launch, tiling: Tiling | None, *, ragged: bool) -> dict[str, float]:
    """Relative error of the output and absolute one of the log-sum-exp against float32."""
    case = dataclasses.replace(case, batch=min(case.batch, 2))
    banks, visible = random_banks(case, seed=time.time_ns() % 2**31, ragged=ragged)
    shape = (case.batch, case.kv_heads, case.queries, case.head_dim)
    query = 2 * case.head_dim**-0.5 * jax.random.normal(jax.random.key(5), shape)
    kernel = jax.jit(functools.partial(fused_attention, launch=launch, tiling=tiling))
    output, logsumexp = kernel(query, visible, banks, jnp.int32(0))
    expected, expected_logsumexp = jax.jit(reference)(query, banks, visible)
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


@functools.cache
def rivals(case: Case) -> dict[str, LayerTime]:
    """Times of bf16 attention over the same positions, by who does it."""
    heads = case.kv_heads * case.queries
    query = jnp.ones((case.batch, 1, heads, case.head_dim), jnp.bfloat16)
    shape = (case.batch, case.positions + case.text, case.kv_heads, case.head_dim)
    layers = max(1, min(16, round(4e9 / dataclasses.replace(case, codes="bfloat16").bytes)))
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
            times[name] = time_per_layer(step, query, banks)
        except Exception:
            traceback.print_exc()
    return times


def measure(name: str, case: Case, tiling: Tiling | None, ceiling: float) -> dict[str, Any]:
    """One row of the table."""
    bf16 = rivals(dataclasses.replace(case, codes="bfloat16", group_size=None, goal=None))
    shape = (case.batch, case.kv_heads, case.queries, case.head_dim)
    query = case.head_dim**-0.5 * jax.random.normal(jax.random.key(0), shape)
    layers = max(1, min(16, round(2e9 / case.bytes)))
    banks = [random_banks(case, seed) for seed in range(layers)]

    def step(query, layer):
        banks, visible = layer
        return fused_attention(query, visible, banks, jnp.int32(0), gpu_launch, tiling)[0]

    taken = time_per_layer(step, query, banks)
    rival_us = {rival: 1e6 * t.best for rival, t in bf16.items()}
    row = {
        "case": name,
        **dataclasses.asdict(case),
        "tiling": None if tiling is None else dataclasses.asdict(tiling),
        "microseconds": 1e6 * taken.best,
        "wall_microseconds": 1e6 * taken.wall,
        "timed_by": "clock" if taken.device is None else "device",
        "bf16_microseconds": rival_us,
        "bf16_wall_microseconds": {rival: 1e6 * t.wall for rival, t in bf16.items()},
        "ratio_to_cudnn": rival_us.get("cudnn", math.nan) / (1e6 * taken.best),
        "part_of_bandwidth": case.bytes / taken.best / ceiling,
        **error(case, gpu_launch, tiling, ragged=False),
    }
    cudnn, xla = (rival_us.get(rival, math.nan) for rival in ("cudnn", "xla"))
    print(
        f"{name:22} cudnn {cudnn:8.1f} us  xla {xla:8.1f} us  kernel {row['microseconds']:7.1f} us "
        f"(by the clock {row['wall_microseconds']:7.1f})  {row['ratio_to_cudnn']:5.2f}x "
        f"(goal {case.goal})  {row['part_of_bandwidth']:.0%} of the bandwidth  "
        f"error {row['relative_error']:.1e}  {tiling or ''}",
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
        metavar="WARPS,TEAM,SPLITS,QUERIES",
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
    record: dict[str, Any] = {
        **provenance(),
        "source": source_digest(),
        "bandwidth": ceiling,
        "rows": [],
        "failed": [],
    }
    for name in options.cases:
        for tiling in tilings:
            try:
                record["rows"].append(measure(name, CASES[name], tiling, ceiling))
            except Exception:
                print(f"{name} {tiling or ''} failed", flush=True)
                traceback.print_exc()
                record["failed"].append(name)
            write_json(options.out, record)  # after each row: nothing is lost when time runs out
    return 0


if __name__ == "__main__":
    sys.exit(main())
