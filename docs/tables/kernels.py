"""Times of the attention kernels and of coding."""

from typing import Any

from docs.tables.results import read
from vkq_apps.bench.cases import CASES

KERNEL_HEAD = (
    "| case | cuDNN bf16 | packed | ratio | of the bandwidth | goal | relative error |",
    f"|{'---|' * 7}",
)


def kernel_rows() -> list[str]:
    """A row for each case of codes without tables; without a head, as all rows here."""
    return _rows("kernel.json")


def kernel_goal_table() -> list[str]:
    """The cases of `kernel_rows` that have a goal, with a head."""
    rows = read("kernel.json")["rows"]
    return [*KERNEL_HEAD, *(_row(row) for row in rows if CASES[row["case"]].goal is not None)]


def plan_rows() -> list[str]:
    """A row for each plan of a calibrated model."""
    return _rows("kernel_tables.json")


def portable_rows() -> list[str]:
    """A row for one query by bits, and rows for the same as bytes."""
    return _rows("kernel_portable.json")


def _rows(name: str) -> list[str]:
    return [_row(row) for row in read(name)["rows"]]


def _row(row: dict[str, Any]) -> str:
    """A case's times in cuDNN and in the kernel, their ratio, bandwidth, goal and error."""
    microseconds, ratio, share = (
        row[name] for name in ("microseconds", "ratio_to_cudnn", "part_of_bandwidth")
    )
    tuning = ",".join(map(str, (row["tuning"] or {}).values()))
    goal = CASES[row["case"]].goal
    cells = (
        f"`{row['case']}`" + (f", {tuning}" if tuning else ""),
        f"{ratio * microseconds:,.0f} us",
        f"{microseconds:.1f} us",
        f"{ratio:.1f}x",
        f"{share:.0%}",
        "" if goal is None else f"{goal:.0%}" if share >= goal else f"**{goal:.0%} missed**",
        f"{row['relative_error']:.0e}",
    )
    return f"| {' | '.join(cells)} |"


def quantize_rows() -> list[str]:
    """A row for each shape and implementation: a decoder block's prefill, and what coding adds."""
    lines = ["| shape | coded by | decoder block | coding | share |", f"|{'---|' * 5}"]
    return lines + [
        f"| {row['shape']} | `{row['implementation']}` | {row['block_ms']:.2f} ms "
        f"| {row['coding_ms']:.3f} ms | {row['coding_percent']:.1f} % |"
        for row in read("quantize.json")["rows"]
    ]


# For tables of kernel_benchmarks.md.
KERNEL_TABLES = (kernel_rows, plan_rows, portable_rows)
