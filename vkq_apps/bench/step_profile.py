"""Where the time of a decode step goes: microseconds of groups of kernels, by a GPU's records."""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from vkq_apps.bench.timing import kernels_of, recorded

__all__ = ["GROUPS", "profile_step", "time_by_group"]

# By the names of kernels, the first that fits. All others are "rest": norms, RoPE, the gate, sums
# of a product's parts, new keys and values, sampling.
_NAMES = {
    "sums": r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|nccl",
    "attention": r"mosaic_gpu",
    "products": r"gemm|nvjet|cutlass|xmma",
}
GROUPS = (*_NAMES, "rest")
_MOST_NAMES = 30


def profile_step(run: Callable[[], Any], steps: int) -> dict[str, Any]:
    """`time_by_group` of the steps that one call of `run` takes."""
    return time_by_group(recorded(run), steps)


def time_by_group(planes: Iterable[Any], steps: int) -> dict[str, Any]:
    """Microseconds of a step by group of kernels, on the first GPU.

    A kernel's time is the median of its launches: the first sums of a step wait for devices that
    began it later, which is no work.

    Args:
        planes: of a profiler's record, of equal steps.
        steps: how many.

    Returns:
        `microseconds` of a step by `GROUPS`, launches a step, and the `kernels` that took longest,
        numbers left out of their names: name, launches a step, microseconds of one.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for event in kernels_of(planes):
        found[event.name].append(1e-3 * event.duration_ns)
    groups = dict.fromkeys(GROUPS, 0.0)
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, times in found.items():
        launches, taken = len(times) / steps, statistics.median(times)
        groups[_group_of(name)] += launches * taken
        alike = kernels[re.sub(r"_\d+", "", name)[:80]]
        alike[0] += launches
        alike[1] += launches * taken
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])[:_MOST_NAMES]
    return {
        "microseconds": groups,
        "launches": sum(map(len, found.values())) / steps,
        "kernels": [[name, count, taken / count] for name, (count, taken) in longest],
    }


def _group_of(name: str) -> str:
    found = (group for group, names in _NAMES.items() if re.search(names, name, re.IGNORECASE))
    return next(found, "rest")
