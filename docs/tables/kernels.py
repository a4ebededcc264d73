"""Times of the attention kernels and of coding."""

from typing import Any

from docs.tables.results import read

CASES = {
    "mha-32k": "32 heads, 32,768 positions, level codes",
    "mha-32k-signs8": "the same, sign codes (`signs-1bit`)",
    "mha-8k": "32 heads, 8,192 positions, level codes",
    "mha-2304": "32 heads, 2,304 positions, level codes",
    "b1-mha-32k": "one sequence, 32 heads, 32,768 positions, level codes",
    "gqa4-32k": "8 KV heads, 4 queries each, 32,768 positions, level codes",
    "gqa4-32k-signs8": "the same, sign codes",
    "gqa8-32k": "4 KV heads, 8 queries each, 32,768 positions, level codes",
    "gqa8-32k-signs8": "the same with sign codes",
    "gqa7-8k-signs8": "4 KV heads, 7 queries each, 8,192 positions, sign codes",
    "mha-32k-2bit": "32 heads, 32,768 positions, 2 bits",
    "mha-32k-4bit": "32 heads, 32,768 positions, 4 bits",
    "gqa4-3328-signs8-text": "128 sequences, 8 KV heads, 4 queries, 3,328 and 64 text, sign codes",
    "mha-32k-signs8-text": "32 heads, 32,768 positions and 256 text, sign codes",
    "gqa4-32k-static-map": "8 KV heads, 4 queries, 32,768 positions, level codes, static score map",
    "gqa4-8k-window4k-signs8": "8 KV heads, 4 queries, a window of 4,096 of 8,192, sign codes",
    "h256-8k-signs8": "16 heads of 256 channels, 8,192 positions, sign codes",
    "h256-gqa4-8k-signs8": "4 KV heads of 256 channels, 4 queries, 8,192 positions, sign codes",
    "h96-8k-signs8": "32 heads of 96 channels, 8,192 positions, sign codes",
    "mha-32k-calibrated": "32 heads, 32,768 positions, level codes, calibrated each step",
    "mha-2304-calibrated": "32 heads, 2,304 positions, the same",
    "gqa4-32k-calibrated": "8 KV heads, 4 queries, 32,768 positions, the same",
}


KERNEL_HEAD = (
    "| case | cuDNN bf16 | packed | ratio | goal | of the bandwidth | relative error |",
    f"|{'---|' * 7}",
)


def dictionary_rows(name: str = "kernel_dictionary.json") -> list[str]:
    """Rows as `kernel_rows` without goals, of a run with dictionary codes; cases by name."""
    return [_row_of_codes(row) for row in read(name)["rows"]]


def class_rows() -> list[str]:
    """Rows as `dictionary_rows`, behind the times of earlier runs: a loop for each class."""
    earlier = ("kernel_dictionary.json", "kernel_tables.json", "kernel_bias.json")
    before = {row["case"]: row["microseconds"] for name in earlier for row in read(name)["rows"]}
    return [
        _row_of_codes(row, f"{before[row['case']]:.1f} us")
        for row in read("kernel_classes.json")["rows"]
    ]


def _row_of_codes(row: dict[str, Any], *before: str) -> str:
    microseconds, ratio = row["microseconds"], row["ratio_to_cudnn"]
    rival = ("", "") if ratio is None else (f"{ratio * microseconds:,.0f} us", f"{ratio:.1f}x")
    tuning = ",".join(map(str, (row["tuning"] or {}).values()))
    name = f"`{row['case']}`" + (f", {tuning}" if tuning else "")
    times = (rival[0], *before, f"{microseconds:.1f} us")
    shares = (rival[1], f"{row['part_of_bandwidth']:.0%}", f"{row['relative_error']:.0e}")
    return f"| {' | '.join((name, *times, *shares))} |"


def codebook_rows() -> list[str]:
    """Rows as `dictionary_rows`, of the plans of a calibrated model."""
    return dictionary_rows("kernel_tables.json")


def text_rows() -> list[str]:
    """Rows as `dictionary_rows`, of text in 16 and in 8 bits beside the codes."""
    return dictionary_rows("kernel_text.json")


def bias_rows() -> list[str]:
    """Rows as `dictionary_rows`, of keys with and without a bias that is kept out."""
    return dictionary_rows("kernel_bias.json")


def portable_rows() -> list[str]:
    """Rows as `dictionary_rows`, of one query by bits and as bytes."""
    return dictionary_rows("kernel_portable.json")


def learned_rows() -> list[str]:
    """A row for each case: the launch and what is beside it, before and after a change of that."""
    found: dict[str, dict[str, Any]] = {}
    for row in read("kernel_learned.json")["rows"]:
        found.setdefault(row["case"], {})[row["code"]] = row
    lines = []
    for case, rows in found.items():
        both = (rows["before"], rows["after"])
        launch = [x["launch_microseconds"] for x in both]
        beside = [x["microseconds"] - x["launch_microseconds"] for x in both]
        figures = [*launch, *beside, rows["after"]["microseconds"]]
        lines.append(f"| `{case}` | {' | '.join(f'{x:.1f} us' for x in figures)} |")
    return lines


def kernel_rows() -> list[str]:
    """A row for each case: cuDNN's and the kernel's time, ratio, goal, bandwidth, error."""
    return [
        f"| {CASES[row['case']]} | {row['ratio_to_cudnn'] * row['microseconds']:,.0f} us "
        f"| {row['microseconds']:.1f} us | {row['ratio_to_cudnn']:.1f}x | {_goal(row)} "
        f"| {row['part_of_bandwidth']:.0%} | {row['relative_error']:.0e} |"
        for row in read("kernel.json")["rows"]
    ]


def _goal(row: dict[str, Any]) -> str:
    if row["goal"] is None:
        return ""
    missed = row["ratio_to_cudnn"] < row["goal"]
    return f"**{row['goal']:g}x missed**" if missed else f"{row['goal']:g}x"


def kernel_table() -> list[str]:
    """The table of `kernel_rows`."""
    return [*KERNEL_HEAD, *kernel_rows()]


def quantize_rows() -> list[str]:
    """A row for each shape and implementation: a decoder block's prefill, and what coding adds."""
    lines = ["| shape | coded by | decoder block | coding | share |", f"|{'---|' * 5}"]
    return lines + [
        f"| {row['shape']} | `{row['implementation']}` | {row['block_ms']:.2f} ms "
        f"| {row['coding_ms']:.3f} ms | {row['coding_percent']:.1f} % |"
        for row in read("quantize.json")["rows"]
    ]


# Each without its head, for a table of kernel_benchmarks.md.
KERNEL_TABLES = (
    dictionary_rows,
    class_rows,
    codebook_rows,
    learned_rows,
    text_rows,
    bias_rows,
    portable_rows,
)
