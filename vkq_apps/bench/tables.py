"""Measured rows as tables for people."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from vkq_apps.bench.quantize import GOAL_PERCENT
from vkq_apps.bench.step_profile import GROUPS
from vkq_jax.byte_units import human_bytes

__all__ = ["mesh_table", "prefill_table", "quantize_table", "scaling_table", "throughput_table"]

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]


def throughput_table(record: dict[str, Any]) -> Table:
    """Rows of `vkq bench throughput`."""
    columns: Columns = {
        "shape": lambda row: row["shape"],
        "budget GB": lambda row: f"{row['budget_gb']:g}",
        "cache": lambda row: row["preset"],
        "by": lambda row: row["implementation_taken"],
        "batch": lambda row: str(row["batch"]),
        "MB each": lambda row: f"{row['bytes_per_sequence']['total'] / 1e6:.3g}",
        "tokens /s": lambda row: f"{row['tokens_per_second']:.0f}",
        "x bf16": _ratios,
        "step ms": lambda row: f"{row['step_ms']:.2f}",
        "read ms": lambda row: f"{row['weights_ms']:.2f}",
        "peak GB": lambda row: f"{row['peak_bytes'] / 1e9:.1f}",
        "as xla": lambda row: f"{row['agreement']['equal_tokens']:.0%}",
    }
    return _table(
        record,
        columns,
        "generation within a budget of KV cache",
        {
            "batch": "the largest that fits, or that rounded down for matrix products, whichever "
            "is faster",
            "x bf16": "tokens/s, in brackets both at bf16's largest batch",
            "read ms": "to read the weights once at the bandwidth of a copy, "
            f"{record['bandwidth'] / 1e9:.0f} GB/s",
            "as xla": "greedy tokens that XLA's attention gives too; blank where XLA itself runs "
            "or nothing was compared",
        },
    )


def prefill_table(record: dict[str, Any]) -> Table:
    """Rows of `vkq bench prefill`."""
    columns: Columns = {
        "shape": lambda row: row["shape"],
        "mesh": lambda row: row["mesh"] or "",
        "cache": lambda row: row["preset"],
        "prompts": lambda row: f"{row['sequences_at_once']} x {row['tokens']}",
        "ms": lambda row: f"{row['milliseconds']:.1f}",
        "x bf16": lambda row: f"{row['ratio_to_bf16']:.3f}",
        "wall ms": lambda row: f"{row['wall_milliseconds']:.1f}",
        "compile s": lambda row: "" if row["compile_cached"] else f"{row['compile_seconds']:.1f}",
        "temporary GB": lambda row: f"{row['temporary_bytes'] / 1e9:.2f}",
        "peak GB": lambda row: f"{row['peak_bytes'] / 1e9:.1f}",
    }
    return _table(
        record,
        columns,
        "prefill of a few prompts at once",
        {
            "ms": "of the device, where it is known",
            "wall ms": "until the first token's logits are there",
            "compile s": "tracing, lowering and compiling; blank where a program was kept on disk",
            "temporary GB": "scratch memory of a call, by the compiler's plan",
        },
    )


def quantize_table(record: dict[str, Any]) -> Table:
    """Rows of `vkq bench quantize`."""
    columns: Columns = {
        "shape": lambda row: row["shape"],
        "visual cache": lambda row: row["preset"],
        "by": lambda row: row["implementation"],
        "prompts": lambda row: f"{row['sequences_at_once']} x {row['tokens']}",
        "block ms": lambda row: f"{row['block_ms']:.3f}",
        "coding ms": lambda row: f"{row['coding_ms']:.3f}",
        "% of block": lambda row: f"{row['coding_percent']:.2f}",
        "key error": lambda row: f"{row['key_squared_error']:.3f}",
        "value error": lambda row: f"{row['value_squared_error']:.3f}",
        "from plain": lambda row: "{:.1e}".format(
            max(row["key_difference_from_plain"], row["value_difference_from_plain"])
        ),
    }
    return _table(
        record,
        columns,
        f"coding a layer's keys and values (goal: at most {GOAL_PERCENT:g} % of the block)",
        {
            "block ms": "a decoder block",
            "key error": "relative and squared, as the values'",
            "from plain": "distance to plain coding in XLA",
        },
    )


def scaling_table(record: dict[str, Any]) -> Table:
    """Rows of `vkq bench scaling`."""
    columns: Columns = {
        "length": lambda row: str(row["length"]),
        "batch": lambda row: str(row["batch"]),
        "visual cache": lambda row: row["preset"],
        "by": lambda row: row["implementation_taken"],
        "cache": lambda row: human_bytes(row["cache_bytes"]),
        "us": lambda row: f"{row['microseconds']:.1f}",
        "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:.0f}",
        "to bf16": lambda row: f"{row['ratio_to_bf16']:.2f}x",
        "error": lambda row: f"{row['relative_error']:.1e}",
    }
    return _table(
        record,
        columns,
        f"one decode attention at the heads of {record['shape']}",
        {
            "GB/s": f"a copy reaches {record['bandwidth'] / 1e9:.0f}",
            "error": "relative, against the float32 oracle over the same codes",
        },
    )


def mesh_table(record: dict[str, Any]) -> Table:
    """Rows of `vkq bench scaling --mesh`."""
    columns: dict[str, Callable[[Row], str]] = {
        "mesh": lambda row: row["mesh"] or "none",
        "devices": lambda row: str(row["devices"]),
        "batch": lambda row: str(row["batch"]),
        "cache": lambda row: row["preset"],
        "by": lambda row: row["implementation_taken"],
        "step ms": lambda row: f"{row['step_ms']:.2f}",
        "tokens /s": lambda row: f"{row['tokens_per_second']:.0f}",
        "to first": lambda row: f"{row['speedup']:.2f}x",
        "to bf16": lambda row: f"{row['ratio_to_bf16']:.2f}x",
        "weights each": lambda row: human_bytes(row["weight_bytes_per_device"]),
        "cache each": lambda row: human_bytes(row["cache_bytes_per_device"]),
        "sent each": lambda row: human_bytes(int(row["wire_bytes_per_step"])),
    }
    for group in GROUPS:
        columns[f"{group} us"] = partial(_microseconds, group)
    return _table(
        record,
        columns,
        "decode steps on meshes of devices",
        {
            "to first": "tokens/s against the first mesh of the same cache",
            "sent each": "bytes that a device sends in a step, by the compiled program",
            f"{GROUPS[-1]} us": "all other kernels of a step; sums are those of devices",
        },
    )


def _table(record: dict[str, Any], columns: Columns, title: str, notes: Mapping[str, str]) -> Table:
    """A table without the columns that no row fills; below it what the others mean, and why.

    Args:
        notes: what columns mean, by their headings.
    """
    rows = record["rows"]
    cells = {name: [_cell(row, show) for row in rows] for name, show in columns.items()}
    cells[""] = ["" if row["status"] == "measured" else row["status"] for row in rows]
    cells = {name: column for name, column in cells.items() if any(column)}
    below = [f"{name}: {notes[name]}." for name in cells if name in notes]
    table = Table(
        title=f"{record['device']}: {title}",
        caption=Text("\n".join([" ".join(below), *_reasons(record)]).strip()),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, (name, column) in enumerate(cells.items()):
        table.add_column(
            name.replace(" ", "\n"),
            justify="right" if number else "left",
            no_wrap=not any(" " in cell for cell in column),  # a number is never broken
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def _reasons(record: dict[str, Any]) -> list[str]:
    """Why rows were not measured, each reason once."""
    reasons = [f"{row['status']}: {row['message']}" for row in record["rows"] if "message" in row]
    if record.get("left_out"):
        reasons.append(f"left out for lack of time: {'; '.join(record['left_out'])}")
    return list(dict.fromkeys(reasons))


def _cell(row: Row, show: Callable[[Row], str]) -> str:
    """A figure, or nothing where the row does not have it."""
    try:
        return show(row) or ""
    except (KeyError, TypeError):
        return ""


def _ratios(row: Row) -> str:
    equal = row.get("ratio_to_bf16_at_equal_batch")
    return f"{row['ratio_to_bf16']:.2f}" + ("" if equal is None else f" ({equal:.2f})")


def _microseconds(group: str, row: Row) -> str:
    return f"{row['profile']['microseconds'][group]:.0f}"
