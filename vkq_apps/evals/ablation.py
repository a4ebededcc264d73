"""The use of each part of the presets: the same codes with one part left out.

    python -m vkq_apps.evals.ablation --out results/ablation.json

Every row is a preset, or one of its plans, with one part left out or replaced at about equal bits;
its tables are fitted anew to the samples of the whole one. All answer the same held-out questions
of the embedded model's recipe, the cache coded before the question is read: points lost against
full precision, and KL of the next token, with 95 % intervals. `--calibrate-kinds` and `--kinds` fit
to some kinds of pictures and ask about others.
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.evals.ablation")

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

from rich.table import Table

import models
from models.calibration.codes import gather_samples
from models.calibration.fitting import CodeFitter
from models.calibration.folder import CalibrationFolder, digest_of
from models.calibration.samples import CodeSamples
from vkq_apps.evals.ablation_rows import DEFAULT_PLANS, PARTS, PARTS_HELP, PLANS, chosen_rows
from vkq_apps.evals.evaluation import Options, evaluate_model
from vkq_apps.evals.plan import make_plan
from vkq_apps.evals.settings import FULL, Setting
from vkq_apps.evals.synthetic import synthetic_tasks
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.results_file import source_digest, write_json
from vkq_apps.files.resuming import part_of
from vkq_apps.terminal.arguments import IMPLEMENTATION_HELP
from vkq_apps.terminal.console import log, out
from vkq_apps.terminal.implementation import implementation_of, layers_apart_with
from vkq_apps.terminal.lists import names
from vkq_apps.terminal.progress import progress
from vkq_apps.terminal.sample_prompts import batches_of
from vkq_apps.terminal.standalone import option, run_standalone
from vkq_apps.training.heldout import calibration_questions
from vkq_apps.training.pictures import KINDS

__all__ = ["main"]

COMMAND = "ablation"


@dataclasses.dataclass(frozen=True)
class AblationOptions:
    """The command line of the ablation; lists are comma-separated."""

    out: Path = option(help="JSON file to write; the log lies beside it.", metavar="FILE")
    plans: str = option(
        DEFAULT_PLANS,
        help=f"PRESET/PLAN, of {', '.join(PLANS)}.",
        metavar="NAMES",
    )
    parts: str = option(",".join(PARTS), help=PARTS_HELP, metavar="NAMES")
    whole: bool = option(False, help="Only the whole plans.")
    samples: int = option(300, help="Questions.", min=1)
    seed: int = option(21, help="Seed of the questions.", min=0)
    calibration: int = option(128, help="Calibration prompts.", min=1)
    calibrate_kinds: str = option(",".join(KINDS), help="Kinds to fit to.", metavar="NAMES")
    kinds: str = option(",".join(KINDS), help="Kinds to ask about.", metavar="NAMES")
    batch_size: int = option(50, help="Questions answered at once.", min=1)
    implementation: str = option("auto", help=IMPLEMENTATION_HELP, metavar="NAME")
    resume: bool = option(False, help="Go on from the log.")


def _measure(options: AblationOptions) -> dict[str, Any]:
    """The record of the results."""
    plans = names("--plans", options.plans, PLANS)
    kinds = names("--kinds", options.kinds, KINDS)
    calibrate_kinds = names("--calibrate-kinds", options.calibrate_kinds, KINDS)
    chosen = implementation_of(options.implementation)
    check_record_place(options.out, COMMAND)
    model = models.load("tiny", layers_apart=layers_apart_with(chosen))
    part = part_of(options.out) / source_digest()
    kept = CalibrationFolder(part)
    parts = () if options.whole else names("--parts", options.parts, PARTS)
    rows = [row for some in chosen_rows(plans, parts) for row in some]
    settings, fitters = [FULL], {}
    sampled = None
    for row in rows:
        quant, tables = row.quant, None
        if row.uses_tables:
            sampled = sampled or _sampled(model, options, calibrate_kinds, kept)
            samples, digest = sampled
            if row.samples not in fitters:
                fitters[row.samples] = CodeFitter(row.samples(samples))
            fit = functools.partial(row.fit, fitters[row.samples])
            tables = kept.tables(digest_of(digest, row.name, quant), quant, fit)
            log.print(f"{row.name}: has its tables")
        settings.append(Setting(row.name, quant, tables))
    known = synthetic_tasks()
    asked = make_plan(",".join(kinds), known, {}, samples=options.samples, seed=options.seed)
    with progress(log, "questions") as show:
        record = evaluate_model(
            model,
            asked,
            settings,
            Options(
                "image",
                options.samples,
                options.seed,
                options.batch_size,
                implementation=chosen,
            ),
            results=options.out,
            resume=options.resume,
            progress=show,
        )
    fitted = {"calibration": options.calibration, "calibrate_kinds": calibrate_kinds}
    record = record | {"command": COMMAND} | fitted
    write_json(options.out, record)
    shutil.rmtree(part.parent, ignore_errors=True)
    return record


def _sampled(
    model: models.Model,
    options: AblationOptions,
    calibrate_kinds: list[str],
    kept: CalibrationFolder,
) -> tuple[CodeSamples, str]:
    """The samples that tables are fitted to, and their digest."""
    pairs = calibration_questions(options.calibration, kinds=calibrate_kinds)
    with progress(log, "calibration prompts") as show:

        def batches():
            for batch in batches_of(model, pairs, 32):
                yield batch
                show("answering", len(batch.mask), len(pairs))

        (samples,), digest = gather_samples(  # of a model whose layers are alike
            model,
            batches(),
            tokens=256,
            max_new_tokens=24,
            seed=0,
            kept=kept,
            implementation=implementation_of(options.implementation),
        )
    return samples, digest


def results_table(record: dict[str, Any]) -> Table:
    """The rows for people."""
    table = Table(title=f"{record['samples']} questions (95 % intervals)")
    table.add_column("codes")
    for name in ("bits", "points lost", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in record["presets"].items():
        whole = row["tasks"]["all"]
        low, high = whole["lost_interval"]
        least, most = whole["kl_interval"]
        table.add_row(
            name,
            f"{row['bits_per_element']['mean']:.2f}",
            f"{whole['lost']:.1f} [{low:.1f}, {high:.1f}]",
            f"{whole['kl']:.5f} [{least:.5f}, {most:.5f}]",
        )
    return table


def run(options: AblationOptions) -> None:
    """Measures, writes the file and shows it."""
    out.print(results_table(_measure(options)))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = f"vkq_apps.evals.{COMMAND}"
    return run_standalone(AblationOptions, run, module=module, help=__doc__, arguments=arguments)
