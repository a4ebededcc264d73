"""Decode steps, tokens a second and prefills at the shapes of real models."""

from typing import Any

from docs.tables.results import read

THROUGHPUT_HEAD = (
    "| shape, KV budget | visual cache | MB a sequence | sequences | decode step | tokens/s "
    "| at bf16's batch | peak memory |",
    f"|{'---|' * 8}",
)


def throughput_table() -> list[str]:
    """The table of `throughput_rows`."""
    return [*THROUGHPUT_HEAD, *throughput_rows()]


def throughput_rows() -> list[str]:
    """A row for each shape, budget and cache: bytes, batch, step, tokens/s, memory."""
    lines = []
    for row in map(_figures, read("throughput.json")["rows"]):
        if row["status"] != "measured":
            continue
        ratio = f" ({row['ratio_to_bf16']:.1f}x)" if row["preset"] != "none" else ""
        equal = row.get("ratio_to_bf16_at_equal_batch")
        lines.append(
            f"| {row['shape']}, {row['budget_gb']:.0f} GB | {row['name']} "
            f"| {row['bytes_per_sequence']['total'] / 1e6:.0f} | {row['batch']} "
            f"| {row['step_ms']:.1f} ms | {row['tokens_per_second']:,.0f}{ratio} "
            f"| {'' if equal is None else f'{equal:.2f}x'} | {row['peak_bytes'] / 1e9:.1f} GB |"
        )
    return lines


def speed_rows() -> list[str]:
    """A row for each shape and budget: tokens/s and sequences of each cache."""
    rows = [row for row in read("throughput.json")["rows"] if row["status"] == "measured"]
    names = list(dict.fromkeys(row["name"] for row in map(_figures, rows)))
    groups: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for row in map(_figures, rows):
        groups.setdefault((row["shape"], row["budget_gb"]), {})[row["name"]] = row
    lines = [
        f"| shape, KV budget | visual tokens | {' | '.join(names)} |",
        f"|{'---|' * (2 + len(names))}",
    ]
    for (shape, budget), found in groups.items():
        cells = [_speed(found[name]) if name in found else "" for name in names]
        tokens = next(iter(found.values()))["visual_tokens"]
        lines.append(f"| {shape}, {budget:.0f} GB | {tokens:,} | {' | '.join(cells)} |")
    return lines


def _speed(row: dict[str, Any]) -> str:
    """Tokens/s, sequences in brackets, and how many times as fast as 16 bits."""
    ratio = f", **{row['ratio_to_bf16']:.1f}x**" if row["preset"] != "none" else ""
    return f"{row['tokens_per_second']:,.0f} ({row['batch']:,}){ratio}"


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """A row's own, and its name: whose cache it is."""
    other = row["implementation"] == "transformers"
    return row | {"name": "16 bits, transformers" if other else _cache(row["preset"])}


def prefill_rows() -> list[str]:
    """A row for each shape and cache: time, compile time and scratch memory of a prefill."""
    lines = [
        "| shape, prompts | cache | device clock | to 16 bits | wall clock | to 16 bits "
        "| compiled in | scratch |",
        f"|{'---|' * 8}",
    ]
    wall_of_dense = {
        row["shape"]: row["wall_milliseconds"]
        for row in read("prefill.json")["rows"]
        if row["preset"] == "none"
    }
    for row in read("prefill.json")["rows"]:
        if row["status"] == "measured":
            lines.append(
                f"| {row['shape']}, {row['sequences_at_once']} x {row['tokens']:,} "
                f"| {_cache(row['preset'])} | {row['milliseconds']:.0f} ms "
                f"| {row['ratio_to_bf16']:.2f}x | {row['wall_milliseconds']:.0f} ms "
                f"| {row['wall_milliseconds'] / wall_of_dense[row['shape']]:.2f}x "
                f"| {row['compile_seconds']:.0f} s "
                f"| {row['temporary_bytes'] / 1e9:.2f} GB |"
            )
    return lines


def _cache(preset: str) -> str:
    return "16 bits" if preset == "none" else f"`{preset}`"
