"""Tables of what codes do to answers of models and to predictions of a text model."""

from docs.tables.results import read

_NOT_IN_README = tuple(
    f"| `{name}` |" for name in ("vkq-2bit:plain", "turboquant-2.5bit", "keep-4%")
)
ANSWER_HEAD = "| visual cache | bits | saved | right | points lost | agree | KL |"


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


def short_answer_rows() -> list[str]:
    """The table of `answer_rows` without the kinds of pictures."""
    return _without_kinds(answer_rows())


def readme_answer_rows() -> list[str]:
    """The table of `short_answer_rows` without some presets, for README.md, which is short."""
    return [line for line in short_answer_rows() if not line.startswith(_NOT_IN_README)]


def gemma_judge_rows() -> list[str]:
    """The table of `answer_rows` for the judge on Gemma-3-270M."""
    return answer_rows("judge_gemma.json")


def qwen_judge_rows() -> list[str]:
    """The table of `answer_rows` for the judge on Qwen2.5-Coder-0.5B."""
    return answer_rows("judge_qwen.json")


def short_gemma_judge_rows() -> list[str]:
    """The table of `gemma_judge_rows` without the kinds of pictures."""
    return _without_kinds(gemma_judge_rows())


def short_qwen_judge_rows() -> list[str]:
    """The table of `qwen_judge_rows` without the kinds of pictures."""
    return _without_kinds(qwen_judge_rows())


def _without_kinds(lines: list[str]) -> list[str]:
    return ["|".join([*line.split("|")[:8], ""]) for line in lines]


def ablation_rows(*files: str, digits: int = 4) -> list[str]:
    """A row for each plan and for each part of it that was left out: bits, lost, KL.

    Args:
        files: results files, `ablation.json` by default.
        digits: of the KL, behind the point.
    """
    lines = ["| codes | bits | points lost | KL |", "|---|---|---|---|"]
    rows = [row for file in files or ("ablation.json",) for row in read(file)["presets"].items()]
    for label, row in rows:
        if label == "none":
            continue
        whole = row["tasks"]["all"]
        lost, kl = whole["lost_interval"], whole["kl_interval"]
        lines.append(
            f"| {label} | {row['bits_per_element']['mean']:.2f} "
            f"| {whole['lost']:.1f} [{lost[0]:.1f}, {lost[1]:.1f}] "
            f"| {whole['kl']:.{digits}f} [{kl[0]:.{digits}f}, {kl[1]:.{digits}f}] |"
        )
    return lines


def four_plane_ablation_rows() -> list[str]:
    """A row for each plan with a class of four planes, and for each part that was left out."""
    return ablation_rows("ablation_four_planes.json", digits=5)


def kinds_rows() -> list[str]:
    """A row for each plan, fitted to other kinds of pictures than those asked about."""
    return ablation_rows("kinds_apart.json", "kinds_apart_four_planes.json")


def scales_apart_rows() -> list[str]:
    """A row for `vkq-half` with each rule of scales, fitted to other kinds of pictures."""
    return ablation_rows("scales_apart.json")


def whole_plan_rows() -> list[str]:
    """A row for each plan of `vkq-1bit` and `vkq-2bit` that visual tokens like classes may take."""
    return ablation_rows("plans.json")


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


def text_bed_ablation_rows(file: str = "text_bed_ablation.json") -> list[str]:
    """A row for each plan on the text model and for each part left out: bits, KL, what it adds."""
    lines = ["| codes | bits | KL | more than the whole plan |", f"|{'---|' * 4}"]
    for name, row in read(file)["presets"].items():
        low, high = row["more_interval"]
        more = f"{row['more']:+.3f} [{low:+.3f}, {high:+.3f}]" if ": " in name else ""
        bits = row["bits_per_element"]["mean"]
        lines.append(f"| {name} | {bits:.2f} | {row['kl']:.3f} | {more} |")
    return lines


def text_bed_plain_rows() -> list[str]:
    """The same for the plan without tables."""
    return text_bed_ablation_rows("text_bed_plain.json")
