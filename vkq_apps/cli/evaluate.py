"""`vkq eval`: many questions, several presets, one table of right answers."""

from pathlib import Path
from typing import Annotated

import jax
import typer

import models
from models.prompts.visuals import check_takes_clips
from vkq_apps.evals.checkpoint_digest import files_digest
from vkq_apps.evals.datasets import FORMATS, read_data
from vkq_apps.evals.evaluation import Options, evaluate_model, marks_of
from vkq_apps.evals.metrics import METRICS
from vkq_apps.evals.plan import known_tasks, make_plan
from vkq_apps.evals.plots import write_plots
from vkq_apps.evals.records import log_path
from vkq_apps.evals.settings import preset_names, settings_of
from vkq_apps.evals.table import results_tables
from vkq_apps.files.outputs import check_record_place
from vkq_apps.terminal.arguments import (
    ImplementationOption,
    JsonOption,
    MeshOption,
    ModelOption,
    QuantizeAtOption,
    TablesOption,
    load_model,
)
from vkq_apps.terminal.codes_option import FORMS, TEXT
from vkq_apps.terminal.console import log, out, print_json, stage
from vkq_apps.terminal.counts import check_count
from vkq_apps.terminal.hosts import check_mesh_of, on_all_hosts
from vkq_apps.terminal.implementation import implementation_of, layers_apart_with
from vkq_apps.terminal.progress import progress, resumable
from vkq_jax.files.atomic_write import check_writable

__all__ = ["evaluate"]

DEFAULT_PRESETS = "vkq-1bit,quantile-1bit,calibquant-1bit,kivi-2bit"


def evaluate(
    model: ModelOption = "tiny",
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help='Comma-separated names, or "all"; by default those of --data, or else the kinds '
            "of picture that the embedded model was trained on.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT=PATH",
            help="Questions of your own or of a published data set in a local folder; repeat for "
            f"several. Formats: {', '.join(FORMATS)}. A jsonl file has one object a line: "
            "image or images, question, answer or answers, and perhaps choices and id.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Metric of jsonl data: {', '.join(METRICS)}."),
    ] = None,
    quant: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Presets to compare with full precision, comma-separated; "
            f"NAME{TEXT} (none too) has text in 8 bits, keep-7% drops all but 7 % of the visual "
            f"tokens, those of most attention. {FORMS}",
        ),
    ] = DEFAULT_PRESETS,
    tables: TablesOption = None,
    quantize_at: QuantizeAtOption = "image",
    samples: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            callback=check_count,
            help="Questions in all, spread evenly over the tasks (the first ones get one more; a "
            "task that has fewer gives all it has, and the others share the rest).",
        ),
    ] = 200,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            callback=check_count,
            help="Seed of the pictures or samples drawn, and of the intervals.",
        ),
    ] = 0,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Also ask each question about another picture: the score of guessing."
        ),
    ] = False,
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer", help="Also the error of scores and attention outputs in each layer."
        ),
    ] = False,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic", help="Ask the embedded model's questions of another checkpoint, too."
        ),
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(min=1, metavar="N", callback=check_count, help="Questions answered at once."),
    ] = 16,
    implementation: ImplementationOption = "auto",
    results: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="JSON file to write; FILE.samples.jsonl beside it is the log.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the log, or add presets to the results of a finished run; without it "
            "a run starts anew.",
        ),
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for plots of accuracy and KL against bits."),
    ] = None,
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Counts right answers, and those that each preset loses against full precision.

    exact: share of answers that are right word for word.

    lost: percentage points by which full precision is more often exact, on the same questions.

    agreement: share of answers equal to full precision's own.

    kl: mean KL(full precision || preset) of the next token along full precision's answer, in nats.

    Intervals are 95 %: Wilson's of shares, else the bootstrap over pictures.
    """
    names, chosen = preset_names(quant), implementation_of(implementation)
    if resume and results is None:
        raise ValueError("--resume: expected --out FILE, beside which the log lies")
    if quantize_at != "image" and any(name.startswith("keep-") for name in names):
        raise ValueError("--quant keep-N%: expected --quantize-at image, where tokens are dropped")
    if results is not None:
        check_record_place(results, "vkq eval")
        check_writable(log_path(results))
    if plots is not None:
        check_writable(plots / "accuracy.png")
    if resume and jax.process_count() > 1:
        raise ValueError("--resume: expected one host: several hosts keep no log")
    if jax.process_index():
        results = plots = None  # the first host writes
    options = Options(
        quantize_at,
        samples,
        seed,
        batch_size,
        control=control,
        by_layer=by_layer,
        implementation=chosen,
    )
    with on_all_hosts() as alike:
        check_mesh_of(model, mesh, batch_size)
        own = read_data(data or (), metric)
        if any(task.has_clips for task in own.values()):
            check_takes_clips(models.read_config(model))
        loaded = load_model(model, mesh=mesh, layers_apart=layers_apart_with(chosen))
        settings = settings_of(loaded, names, tables)
        known = known_tasks(loaded, own, synthetic=synthetic)
        with stage("choosing questions"):
            plan = make_plan(tasks, known, own, samples=samples, seed=seed)
        alike |= {
            "weights": lambda: files_digest(loaded),
            "questions, codes and options": lambda: marks_of(plan, settings, options),
        }
    place = None if results is None else log_path(results)
    with resumable(log, place), progress(log, "questions") as show:
        record = evaluate_model(
            loaded, plan, settings, options, results=results, resume=resume, progress=show
        )
    if plots is not None:
        write_plots(plots, record)
    if json:
        print_json(record)
        return
    for table in results_tables(record):
        out.print(table)
