"""The use of parts of the presets in the text bed: the same codes with one part left out.

    python -m vkq_apps.evals.text_bed_ablation --model GGUF_OR_FOLDER --out FILE

Rows are those of `vkq_apps.evals.ablation`, which measures them on the embedded model; texts, model
and KL are those of `vkq_apps.evals.text_bed`. more: the KL that a row has more than its whole plan
on the same texts, in nats, with a 95 % interval; above 0 the part helps. Each whole plan is
measured whatever `--parts` names.
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.evals.text_bed_ablation")

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from models.calibration.fitting import CodeFitter
from models.calibration.folder import CalibrationFolder, digest_of
from models.calibration.samples import CodeSamples
from vkq_apps.evals.ablation_rows import (
    DEFAULT_PLANS,
    PARTS,
    PARTS_HELP,
    PLANS,
    Variant,
    chosen_rows,
)
from vkq_apps.evals.intervals import bootstrap
from vkq_apps.evals.text_bed import BedOptions, MeasuredTexts, figures, sample
from vkq_apps.evals.text_bed_codes import Plan
from vkq_apps.evals.text_bed_model import TextModel
from vkq_apps.evals.text_bed_texts import Excerpt
from vkq_apps.files.results_file import source_digest
from vkq_apps.files.resuming import kept_parts
from vkq_apps.terminal.console import log, out
from vkq_apps.terminal.lists import names
from vkq_apps.terminal.progress import progress
from vkq_apps.terminal.standalone import option, run_standalone
from vkq_jax.codes.code_tables import CodeTables

__all__ = ["ablate", "main"]

COMMAND = "text_bed_ablation"


def ablate(
    model: TextModel,
    plans: Sequence[Sequence[Variant]],
    calibration: Sequence[Excerpt],
    texts: Sequence[Excerpt],
    *,
    seed: int = 0,
    kept: CalibrationFolder | None = None,
    mark: str = "",
    show: Callable[[str, int, int], None] = lambda stage, more, total: None,
) -> dict[str, Any]:
    """The figures of rows, as `text_bed.judge` has them, with `more` and `more_interval`.

    Args:
        model: whose keys and values are coded. plans: rows of each, the whole one first.
        calibration: texts that tables are fitted to. texts: those to measure on.
        seed: of fits and intervals.
        kept: where samples, tables and rows are kept as they are found, and taken from.
        mark: tells the model's weights from others in there.
        show: told what is done, how many more texts, and how many in all.
    """
    kept = kept or CalibrationFolder(None)
    rows = [row for some in plans for row in some]
    fits = any(row.uses_tables for row in rows)
    total = len(calibration) * fits + len(texts) * (1 + len(rows))

    def done(stage: str) -> Callable[[], None]:
        return lambda: show(stage, 1, total)

    of_samples = digest_of(mark, model.span, [text.ids for text in calibration])

    @functools.cache
    def samples() -> CodeSamples:
        (found,) = kept.samples(
            of_samples, lambda: (sample(model, calibration, done("calibrating")),)
        )
        return found

    marks = {row.name: digest_of(of_samples, seed, row.name, row.quant) for row in rows}
    fitters: dict[Any, CodeFitter] = {}
    fitted: dict[str, Plan] = {}

    def plan_of(row: Variant) -> Plan:
        if row.name not in fitted:
            tables = None
            if row.uses_tables:
                if row.samples not in fitters:
                    fitters[row.samples] = CodeFitter(row.samples(samples()), seed)
                make = functools.partial(row.fit, fitters[row.samples])
                tables = kept.tables(marks[row.name], row.quant, make)
                assert isinstance(tables, CodeTables)
            fitted[row.name] = Plan(row.quant, tables)
        return fitted[row.name]

    numbers: dict[str, list[list[float]]] = {row.name: [] for row in rows}
    for text in texts:  # a kill costs one text of one row

        @functools.cache
        def measured(text: Excerpt = text) -> MeasuredTexts:
            return MeasuredTexts(model, [text], done("full precision"))

        for row in rows:

            def measure(row: Variant = row, measured: Any = measured) -> list[float]:
                plan = plan_of(row)  # before the text is read: tables may take minutes
                found = measured().measure(plan, done(row.name))
                return [*found["kl"], *found["same"], *found["bits"]]

            numbers[row.name].append(kept.numbers(digest_of(marks[row.name], text.ids), measure))
    clusters, results = [text.name for text in texts], {}
    for whole, *others in plans:
        own = np.array(numbers[whole.name])[:, 0]
        for row in (whole, *others):
            kl, same, key, value = np.array(numbers[row.name]).T
            more = (kl - own).tolist()
            bits = float(key.mean()), float(value.mean())
            results[row.name] = figures({"kl": kl, "same": same, "bits": bits}, texts, seed) | {
                "more": round(float(np.mean(more)), 5),
                "more_interval": [round(x, 5) for x in bootstrap(more, clusters, seed=seed)],
            }
    return results


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextBedAblationOptions(BedOptions):
    """The command line; lists are comma-separated."""

    plans: str = option(
        DEFAULT_PLANS,
        help=f"PRESET/PLAN, of {', '.join(PLANS)}.",
        metavar="NAMES",
    )
    parts: str = option(",".join(PARTS), help=PARTS_HELP, metavar="NAMES")
    resume: bool = option(False, help="Go on from what a run that was stopped left in OUT.part.")


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
    if options.resume and options.out is None:
        raise ValueError("--resume: expected --out FILE, beside which the parts are")
    model, calibration, texts = options.load(COMMAND)
    mark = _digest(options.model)
    settings = {"seed": options.seed, "model weights": mark, "source": source_digest()}
    kept = (
        nullcontext()
        if options.out is None
        else kept_parts(options.out, COMMAND, settings, resume=options.resume)
    )
    with kept as folder, progress(log, "texts") as show:
        rows = ablate(
            model,
            plans,
            calibration,
            texts,
            seed=options.seed,
            kept=CalibrationFolder(folder),
            mark=mark,
            show=show,
        )
        options.record(COMMAND, rows, calibration, texts)
    out.print(results_table(rows, f"{options.samples} texts (95 % intervals)"))


def _digest(model: Path) -> str:
    if model.is_dir():
        digest = hashlib.sha256((model / "config.json").read_bytes())
        for file in sorted(model.glob("*.safetensors")):
            digest.update(_digest(file).encode())
        return digest.hexdigest()
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = f"vkq_apps.evals.{COMMAND}"
    return run_standalone(
        TextBedAblationOptions, run, module=module, help=__doc__, arguments=arguments
    )
