"""Measured rows as tables for people."""

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from vkq_apps.bench.quantize import GOAL_PERCENT
from vkq_apps.cli.console import human_bytes

__all__ = ["quantize_table", "scaling_table", "throughput_table"]

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
        "tokens/s": lambda row: f"{row['tokens_per_second']:.0f}",
        "x bf16": _ratios,
        "step ms": lambda row: f"{row['step_ms']:.2f}",
        "weights": lambda row: f"{row['weights_ms']:.2f}",
        "TTFT ms": lambda row: f"{row['ttft_ms']:.0f} ({_prefill_ratio(row):.2f})",
        "peak GB": lambda row: f"{row['peak_bytes'] / 1e9:.1f}",
        "= xla": lambda row: f"{row['agreement']['equal_tokens']:.0%}",
    }
    return _table(
        record,
        columns,
        "generation within a budget of KV cache",
        "batch: the largest that fits, or that rounded down for matrix products, whichever is "
        "faster. x bf16: tokens/s, in brackets both at bf16's largest batch. weights: ms to read "
        "them once at the bandwidth of a copy, "
        f"{record['bandwidth'] / 1e9:.0f} GB/s. TTFT: prefill of a few prompts at once (x "
        "bf16, of the device's time where it is known). = xla: greedy tokens that XLA's attention "
        "gives too.",
    )


def quantize_table(record: dict[str, Any]) -> Table:
    """Rows of `vkq bench quantize`."""
    columns: Columns = {
        "shape": lambda row: row["shape"],
        "visual cache": lambda row: row["preset"],
        "by": lambda row: row["implementation"],
        "prompts": lambda row: f"{row['sequences_at_once']} x {row['tokens']}",
        "decoder block": lambda row: f"{row['block_ms']:.3f} ms",
        "coding": lambda row: f"{row['coding_ms']:.3f} ms",
        "of the block": lambda row: f"{row['coding_percent']:.2f} %",
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
        "Errors are relative and squared; from plain: distance to plain coding in XLA.",
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
        "Errors are relative, against the float32 oracle over the same codes. A copy reaches "
        f"{record['bandwidth'] / 1e9:.0f} GB/s.",
    )


def _table(record: dict[str, Any], columns: Columns, title: str, caption: str) -> Table:
    table = Table(
        title=f"{record['device']}: {title}",
        caption=caption,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in record["rows"]:
        status = "" if row["status"] == "measured" else row["status"]
        table.add_row(*(_cell(row, show) for show in columns.values()), status)
    if record.get("left_out"):
        table.caption = f"{caption}\nLeft out for lack of time: {'; '.join(record['left_out'])}."
    return table


def _cell(row: Row, show: Callable[[Row], str]) -> str:
    """A figure, or nothing where the row does not have it."""
    try:
        return show(row)
    except (KeyError, TypeError):
        return ""


def _ratios(row: Row) -> str:
    equal = row.get("ratio_to_bf16_at_equal_batch")
    return f"{row['ratio_to_bf16']:.2f}" + ("" if equal is None else f" ({equal:.2f})")


def _prefill_ratio(row: Row) -> float:
    return row.get("prefill_ratio_to_bf16") or row["ttft_ratio_to_bf16"]
