"""Times of the attention kernels and of coding."""

import re
from typing import Any

from docs.tables.results import read
from vkq_apps.bench.cases import CASES

KERNEL_HEAD = (
    "| case | cuDNN bf16 | packed | ratio | of the bandwidth | goal | relative error |",
    f"|{'---|' * 7}",
)


def level_kernel_rows() -> list[str]:
    """Cases of level codes."""
    return _kernel_rows("level")


def sign_kernel_rows() -> list[str]:
    """Cases of sign codes."""
    return _kernel_rows("sign")


def dictionary_kernel_rows() -> list[str]:
    """Cases of dictionary codes without a model's tables."""
    return _kernel_rows("dictionary")


def calibration_kernel_rows() -> list[str]:
    """Cases with score calibration or a sliding window."""
    return _kernel_rows("calibration")


def text_kernel_rows() -> list[str]:
    """Cases with text beside the pictures."""
    return _kernel_rows("text")


def bias_kernel_rows() -> list[str]:
    """Cases of keys coded without their bias."""
    return _kernel_rows("bias")


def dense_kernel_rows() -> list[str]:
    """Cases of caches in bfloat16."""
    return _kernel_rows("dense")


def goal_kernel_rows() -> list[str]:
    """The cases of all these tables that have a goal."""
    rows = read("kernel.json")["rows"]
    return [*KERNEL_HEAD, *(_row(row) for row in rows if CASES[row["case"]].goal is not None)]


def plan_rows() -> list[str]:
    """Rows of the plans of a calibrated model."""
    files = ("kernel_tables.json", "kernel_plans.json")
    return [*KERNEL_HEAD, *(_row(row) for file in files for row in read(file)["rows"])]


def portable_rows() -> list[str]:
    """A row for one query by bits, and rows for the same as bytes."""
    return [*KERNEL_HEAD, *map(_row, read("kernel_portable.json")["rows"])]


# The first pattern that a case's name has says which table it stands in.
_SUBJECTS = (
    ("text", "-text"),
    ("bias", "-bias"),
    ("dense", "-bfloat16"),
    ("calibration", "-calibrated|-static-map|-window"),
    ("dictionary", "-vkq-"),
    ("sign", "-signs"),
    ("level", ""),
)


def _kernel_rows(subject: str) -> list[str]:
    rows = read("kernel.json")["rows"]
    return [*KERNEL_HEAD, *(_row(row) for row in rows if _subject(row["case"]) == subject)]


def _subject(case: str) -> str:
    return next(subject for subject, pattern in _SUBJECTS if re.search(pattern, case))


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
