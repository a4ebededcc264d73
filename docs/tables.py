"""Tables that are made from the files under results/.

`docs/hooks.py` puts them into the pages of the site that have `<!-- table: NAME -->`. README.md and
kernel_benchmarks.md are read without the site: `python docs/tables.py` prints their tables, to be
pasted, and `tests/test_docs.py` holds both pages to them.
"""

import json
import pathlib
import runpy
from typing import Any

RESULTS = pathlib.Path(__file__).parents[1] / "results"
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


# The most that each preset was to have, by file of results and model.
GOALS: dict[str, tuple[str, dict[str, dict[str, float]]]] = {
    "answers.json": (
        "embedded",
        {
            "vkq-1bit": {
                "bits": 1.25,
                "points lost": 0.5,
                "points lost of the worst kind": 1.0,
                "KL": 0.001,
            },
            "vkq-half": {"bits": 0.7, "points lost": 1.0, "KL": 0.0025},
            "vkq-1bit:plain": {"bits": 1.25, "points lost": 2.0, "KL": 0.005},
            "vkq-2bit": {"bits": 2.2, "KL": 0.0003},
        },
    ),
    "judge_gemma.json": (
        "judge",
        {"vkq-1bit": {"bits": 1.15, "points lost": 0.5, "points lost of the worst kind": 1.0}},
    ),
    "text_bed.json": (
        "text bed",
        {
            "vkq-1bit": {"bits": 1.15, "KL": 0.068},
            "vkq-1bit, no tables": {"bits": 1.25, "KL": 0.4},
        },
    ),
}
ANSWER_HEAD = "| visual cache | bits | saved | right | points lost | agree | KL |"
KERNEL_HEAD = (
    "| case | cuDNN bf16 | packed | ratio | goal | of the bandwidth | relative error |",
    f"|{'---|' * 7}",
)
THROUGHPUT_HEAD = (
    "| shape, KV budget | visual cache | MB a sequence | sequences | decode step | tokens/s "
    "| at bf16's batch | peak memory |",
    f"|{'---|' * 8}",
)


def read(name: str) -> dict[str, Any]:
    """A file of results."""
    return json.loads((RESULTS / name).read_text())


def dictionary_rows(name: str = "kernel_dictionary.json") -> list[str]:
    """Rows as `kernel_rows` without goals, of a run with dictionary codes; cases by name."""
    lines = []
    for row in read(name)["rows"]:
        microseconds, ratio = row["microseconds"], row["ratio_to_cudnn"]
        rival = ("", "") if ratio is None else (f"{ratio * microseconds:,.0f} us", f"{ratio:.1f}x")
        tuning = ",".join(map(str, (row["tuning"] or {}).values()))
        name = f"`{row['case']}`" + (f", {tuning}" if tuning else "")
        lines.append(
            f"| {name} | {rival[0]} | {microseconds:.1f} us | {rival[1]} "
            f"| {row['part_of_bandwidth']:.0%} | {row['relative_error']:.0e} |"
        )
    return lines


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


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """A row's own, and its name: whose cache it is."""
    other = row["implementation"] == "transformers"
    return row | {"name": "16 bits, transformers" if other else _cache(row["preset"])}


def _cache(preset: str) -> str:
    return "16 bits" if preset == "none" else f"`{preset}`"


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


def throughput_table() -> list[str]:
    """The table of `throughput_rows`."""
    return [*THROUGHPUT_HEAD, *throughput_rows()]


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


def prefill_rows() -> list[str]:
    """A row for each shape and cache: time, compile time and scratch memory of a prefill."""
    lines = [
        "| shape, prompts | cache | prefill | to 16 bits | compiled in | scratch |",
        f"|{'---|' * 6}",
    ]
    for row in read("prefill.json")["rows"]:
        if row["status"] == "measured":
            lines.append(
                f"| {row['shape']}, {row['sequences_at_once']} x {row['tokens']:,} "
                f"| {_cache(row['preset'])} | {row['milliseconds']:.0f} ms "
                f"| {row['ratio_to_bf16']:.3f}x | {row['compile_seconds']:.0f} s "
                f"| {row['temporary_bytes'] / 1e9:.2f} GB |"
            )
    return lines


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


def text_bed_rows() -> list[str]:
    """A row for each preset on the pretrained text model: bits, KL, agreement."""
    lines = ["| codes | bits | KL | equal predictions |", f"|{'---|' * 4}"]
    for name, row in read("text_bed.json")["presets"].items():
        low, high = row["kl_interval"]
        lines.append(
            f"| {name} | {row['bits_per_element']['mean']:.2f} "
            f"| {row['kl']:.3f} [{low:.3f}, {high:.3f}] | {row['agreement']:.1%} |"
        )
    return lines


def text_bed_ablation_rows() -> list[str]:
    """A row for each plan on the text model and for each part left out: bits, KL, what it adds."""
    lines = ["| codes | bits | KL | more than the whole plan |", f"|{'---|' * 4}"]
    for name, row in read("text_bed_ablation.json")["presets"].items():
        low, high = row["more_interval"]
        more = f"{row['more']:+.3f} [{low:+.3f}, {high:+.3f}]" if ": " in name else ""
        bits = row["bits_per_element"]["mean"]
        lines.append(f"| {name} | {bits:.2f} | {row['kl']:.3f} | {more} |")
    return lines


def short_answer_rows() -> list[str]:
    """The table of `answer_rows` without the kinds of pictures."""
    return _without_kinds(answer_rows())


def short_judge_rows() -> list[str]:
    """The table of `judge_rows` without the kinds of pictures."""
    return _without_kinds(judge_rows())


def _without_kinds(lines: list[str]) -> list[str]:
    return ["|".join([*line.split("|")[:8], ""]) for line in lines]


def answer_rows(file: str = "answers.json") -> list[str]:
    """A row for each preset: bits, saved, right, lost, agreement, KL, points lost by kind."""
    record = read(file)
    kinds = [task for task in record["presets"]["none"]["tasks"] if task != "all"]
    lines = [f"{ANSWER_HEAD} {' | '.join(kinds)} |", f"|{'---|' * (7 + len(kinds))}"]
    for name, row in record["presets"].items():
        bits, whole = row["bits_per_element"]["mean"], row["tasks"]["all"]
        cells = [f"`{name}`", f"{bits:.2f}", f"{row['visual_kv_reduction']:.1%}"]
        cells.append(f"{whole['exact']:.1%}")
        if name == "none":
            lost = ["", "", "", *[f"{row['tasks'][kind]['exact']:.1%}" for kind in kinds]]
        else:
            low, high = whole["lost_interval"]
            lost = [
                f"{whole['lost']:.1f} [{low:.1f}, {high:.1f}]",
                f"{whole['agreement']:.1%}",
                f"{whole['kl']:.4f}",
                *[f"{row['tasks'][kind]['lost']:.1f}" for kind in kinds],
            ]
        lines.append("| " + " | ".join([*cells, *lost]) + " |")
    return lines


def judge_rows() -> list[str]:
    """The table of `answer_rows` for the judge on Gemma-3-270M."""
    return answer_rows("judge_gemma.json")


def goal_rows() -> list[str]:
    """A row for each goal of a preset's answers: what it is, and what was measured."""
    lines = ["| model | visual cache | measure | goal | measured |", f"|{'---|' * 5}"]
    for file, (model, goals) in GOALS.items():
        presets = read(file)["presets"]
        for name, measures in goals.items():
            for measure, goal in measures.items():
                value, shown = _measured(presets[name], measure)
                shown += "" if value <= goal else ", **missed**"
                lines.append(f"| {model} | `{name}` | {measure} | {goal:g} | {shown} |")
    return lines


def _measured(row: dict[str, Any], measure: str) -> tuple[float, str]:
    """A figure, which a goal is the most of, and how a table shows it."""
    if measure == "bits":
        bits = row["bits_per_element"]["mean"]
        return bits, f"{bits:.2f}"
    tasks = row.get("tasks", {"all": row})
    if measure == "points lost of the worst kind":
        kind, worst = max(
            ((name, one) for name, one in tasks.items() if name != "all"),
            key=lambda item: item[1]["lost"],
        )
        low, high = worst["lost_interval"]
        return worst["lost"], f"{worst['lost']:.2f} [{low:.2f}, {high:.2f}], {kind}"
    figure = {"points lost": "lost", "KL": "kl"}[measure]
    whole, digits = tasks["all"], 2 if figure == "lost" else 5
    low, high = whole[f"{figure}_interval"]
    return whole[figure], f"{whole[figure]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def ablation_rows(name: str = "ablation.json") -> list[str]:
    """A row for each plan and for each part of it that was left out: bits, lost, KL."""
    lines = ["| codes | bits | points lost | KL |", "|---|---|---|---|"]
    for label, row in read(name)["presets"].items():
        if label == "none":
            continue
        whole = row["tasks"]["all"]
        lost, kl = whole["lost_interval"], whole["kl_interval"]
        lines.append(
            f"| {label} | {row['bits_per_element']['mean']:.2f} "
            f"| {whole['lost']:.1f} [{lost[0]:.1f}, {lost[1]:.1f}] "
            f"| {whole['kl']:.4f} [{kl[0]:.4f}, {kl[1]:.4f}] |"
        )
    return lines


def mesh_rows() -> list[str]:
    """Decode steps on several GPUs beside those of one, by shape and visual cache.

    Each is compared with one GPU's of the same run at as many sequences a part of `data`, and with
    what `scaling_out.py` works out from that.
    """
    from models.sharding.mesh import check_text
    from pallas_kernels.shapes import find_shape

    work_out = runpy.run_path(str(pathlib.Path(__file__).with_name("scaling_out.py")))["split_step"]
    lines = [
        "| shape | visual cache | mesh | sequences | step, ms | worked out | tokens/s "
        "| of one GPU's | GB a GPU: cache | peak |",
        f"|{'---|' * 10}",
    ]
    one_gpu = {
        (row["run"], row["shape"], row["preset"], row["fixed_batch"]): row
        for row in _measured_mesh_rows()
        if row["mesh"] == "data=1"
    }
    found = _mesh_rows_by_key()
    for (shape, preset, mesh, batch), row in sorted(found.items(), key=_place_of_mesh):
        sizes = check_text(mesh)
        each = batch // sizes.get("data", 1)
        alone, ratio, expected = one_gpu.get((row["run"], shape, preset, each)), "", ""
        if alone is not None and mesh != "data=1":
            ratio = f"{row['tokens_per_second'] / alone['tokens_per_second']:.2f}x"
            one = 1e-3 * alone["step_ms"]
            seconds = work_out(find_shape(shape), one, each, sizes.get("model", 1))
            expected = f"{1e3 * seconds:.2f}"
        lines.append(
            f"| {shape} | `{preset}` | {mesh} | {batch} | {row['step_ms']:.2f} | {expected} "
            f"| {row['tokens_per_second']:,.0f} | {ratio} "
            f"| {row['cache_bytes_per_device'] / 1e9:.1f} "
            f"| {', '.join(f'{peak / 1e9:.1f}' for peak in row['peak_bytes_per_device'])} |"
        )
    return lines


def mesh_profile_rows() -> list[str]:
    """Microseconds a layer by group of kernels, of the rows of `mesh_rows` that have a profile."""
    from pallas_kernels.shapes import find_shape

    lines = [
        "| shape | visual cache | mesh | sequences | attention | products with weights "
        "| sums of devices | rest | a layer |",
        f"|{'---|' * 9}",
    ]
    found = {key: row for key, row in _mesh_rows_by_key().items() if "profile" in row}
    for (shape, preset, mesh, batch), row in sorted(found.items(), key=_place_of_mesh):
        parts = row["profile"]["microseconds"]
        times = [parts[name] for name in ("attention", "products", "sums", "rest")]
        times.append(1e3 * row["step_ms"])
        cells = [f"{each / find_shape(shape).num_layers:.1f}" for each in times]
        lines.append(f"| {shape} | `{preset}` | {mesh} | {batch} | {' | '.join(cells)} |")
    return lines


def _mesh_rows_by_key() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The newest measured row of each shape, preset, mesh and batch."""
    rows = sorted(_measured_mesh_rows(), key=lambda row: row["run"])
    names = ("shape", "preset", "mesh", "fixed_batch")
    return {tuple(row[name] for name in names): row for row in rows}


def _measured_mesh_rows() -> list[dict[str, Any]]:
    """Those of all files `mesh_*.json` of `vkq bench scaling --mesh`."""
    records = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("mesh_*.json"))]
    return [
        row
        for record in records
        if record.get("command") == "vkq bench scaling --mesh"
        for row in record["rows"]
        if row["status"] == "measured"
    ]


def _place_of_mesh(item: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Any, ...]:
    """Where a row lies in `mesh_rows`: one GPU first."""
    (shape, preset, mesh, batch), row = item
    return shape, preset, row["devices"], mesh, batch


def kinds_rows() -> list[str]:
    """A row for each plan, fitted to other kinds of pictures than those asked about."""
    return ablation_rows("kinds_apart.json")


def _goal(row: dict[str, Any]) -> str:
    if row["goal"] is None:
        return ""
    missed = row["ratio_to_cudnn"] < row["goal"]
    return f"**{row['goal']:g}x missed**" if missed else f"{row['goal']:g}x"


# Each a table of kernel_benchmarks.md.
KERNEL_ROWS = (dictionary_rows, codebook_rows, learned_rows, text_rows, bias_rows, portable_rows)


if __name__ == "__main__":
    tables = (short_answer_rows, speed_rows, kernel_table)
    for lines in (rows() for rows in (*tables, *KERNEL_ROWS)):
        print("\n".join(lines), end="\n\n")
