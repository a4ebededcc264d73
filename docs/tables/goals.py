"""The table of the presets' goals, each beside what was measured."""

from typing import Any

from docs.tables.results import read

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
    "judge_qwen.json": (
        "Qwen judge",
        {
            "vkq-1bit": {"bits": 1.25, "points lost": 0.5, "points lost of the worst kind": 1.0},
            "vkq-half": {"bits": 0.7, "points lost": 1.0},
            "vkq-1bit:plain": {"bits": 1.25, "points lost": 2.0},
        },
    ),
    "text_bed.json": (
        "text bed",
        {
            "vkq-1bit": {"bits": 1.15, "KL": 0.068},
            "vkq-1bit, no tables": {"bits": 1.25, "KL": 0.4},
        },
    ),
}


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
