"""The use of parts of the presets in the text bed: the same codes with one part left out.

    python -m vkq_apps.evals.text_bed_ablation --model GGUF_OR_FOLDER --out FILE

Rows are those of `vkq_apps.evals.ablation`, which measures them on the embedded model; texts, model
and KL are those of `vkq_apps.evals.text_bed`. more: the KL that a row has more than its whole plan
on the same texts, in nats, with a 95 % interval; above 0 the part helps. Each whole plan is
measured whatever `--parts` names.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from models.calibration.fitting import CodeFitter
from vkq_apps.bench.options import names
from vkq_apps.cli.console import log, out
from vkq_apps.cli.standalone import option, run_standalone
from vkq_apps.evals.ablation import PLANS, Variant, variants
from vkq_apps.evals.intervals import bootstrap
from vkq_apps.evals.progress import progress
from vkq_apps.evals.text_bed import BedOptions, MeasuredTexts, figures, sample
from vkq_apps.evals.text_bed_codes import Plan
from vkq_apps.evals.text_bed_model import TextModel
from vkq_apps.evals.text_bed_texts import Excerpt
from vkq_jax.dictionary_codes import DictionaryCodes

__all__ = ["ablate", "chosen_rows", "main"]

COMMAND = "text_bed_ablation"
ROWS = {plan: list(variants(name, int(i))) for plan in PLANS for name, i in [plan.split("/")]}
PARTS = list(dict.fromkeys(row.part for some in ROWS.values() for row in some if row.part))


def chosen_rows(plans: Sequence[str], parts: Sequence[str]) -> list[list[Variant]]:
    """The rows of each plan, the whole one first, then those of `parts` that it has."""
    return [[row for row in ROWS[plan] if not row.part or row.part in parts] for plan in plans]


def ablate(
    model: TextModel,
    plans: Sequence[Sequence[Variant]],
    calibration: Sequence[Excerpt],
    texts: Sequence[Excerpt],
    *,
    seed: int = 0,
    show: Callable[[str, int, int], None] = lambda stage, more, total: None,
) -> dict[str, Any]:
    """The figures of rows, as `text_bed.judge` has them, with `more` and `more_interval`.

    Args:
        model: whose keys and values are coded. plans: rows of each, the whole one first.
        calibration: texts that tables are fitted to. texts: those to measure on.
        seed: of fits and intervals.
        show: told what is done, how many more texts, and how many in all.
    """
    total = len(calibration) + len(texts) * (1 + sum(map(len, plans)))

    def done(stage: str) -> Callable[[], None]:
        return lambda: show(stage, 1, total)

    samples = sample(model, calibration, done("calibrating"))
    measured = MeasuredTexts(model, texts, done("full precision"))
    clusters = [text.name for text in texts]
    fitters: dict[Any, CodeFitter] = {}
    found: dict[str, Any] = {}
    for whole, *rows in plans:
        own: list[float] = []
        for row in (whole, *rows):
            if row.samples not in fitters:
                fitters[row.samples] = CodeFitter(row.samples(samples), seed)
            tables, key = None, row.quant.key
            assert isinstance(key, DictionaryCodes)
            if key.uses_tables:
                tables = row.tables(fitters[row.samples].fit(row.quant))
            result = measured.measure(Plan(row.quant, tables), done(row.name))
            own = own or result["kl"]
            more = (np.array(result["kl"]) - own).tolist()
            found[row.name] = figures(result, texts, seed) | {
                "more": round(float(np.mean(more)), 5),
                "more_interval": [round(x, 5) for x in bootstrap(more, clusters, seed=seed)],
            }
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextBedAblationOptions(BedOptions):
    """The command line; lists are comma-separated."""

    plans: str = option(
        ",".join(plan for plan in PLANS if plan.startswith("vkq-")),
        help=f"PRESET/PLAN, of {', '.join(PLANS)}.",
        metavar="NAMES",
    )
    parts: str = option(",".join(PARTS), help="Rows of the plans to measure.", metavar="NAMES")


def results_table(rows: dict[str, Any], title: str) -> Table:
    """The rows for people."""
    table = Table(title=title)
    table.add_column("codes")
    for name in ("bits", "KL", "more than the whole"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in rows.items():
        low, high = row["more_interval"]
        more = f"{row['more']:+.4f} [{low:+.4f}, {high:+.4f}]" if ": " in name else ""
        bits = f"{row['bits_per_element']['mean']:.2f}"
        table.add_row(name, bits, f"{row['kl']:.4f}", more)
    return table


def run(options: TextBedAblationOptions) -> None:
    """Measures, writes the file and shows it."""
    plans = chosen_rows(
        names("--plans", options.plans, PLANS), names("--parts", options.parts, PARTS)
    )
    model, calibration, texts = options.load()
    with progress(log, "texts") as show:
        rows = ablate(model, plans, calibration, texts, seed=options.seed, show=show)
    options.record(COMMAND, rows, calibration, texts)
    out.print(results_table(rows, f"{options.samples} texts (95 % intervals)"))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    module = f"vkq_apps.evals.{COMMAND}"
    return run_standalone(
        TextBedAblationOptions, run, module=module, help=__doc__, arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
