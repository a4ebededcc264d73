"""`vkq eval`: does 1 bit keep the answer? Many questions, several presets, one table."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

import models
from vkq_apps.bench.results_file import source_digest, write_json
from vkq_apps.cli.arguments import JsonOption, QuantizeAtOption
from vkq_apps.cli.console import log, out, print_json, stage
from vkq_apps.evals.batches import in_batches
from vkq_apps.evals.fingerprint import fingerprint
from vkq_apps.evals.progress import progress
from vkq_apps.evals.records import SampleLog, log_path
from vkq_apps.evals.report import summarize
from vkq_apps.evals.runner import run
from vkq_apps.evals.settings import parse_settings
from vkq_apps.evals.synthetic import synthetic_tasks
from vkq_apps.evals.table import results_table
from vkq_apps.evals.tasks import choose_tasks, spread
from vkq_apps.provenance import provenance
from vkq_jax.whole_file import check_writable

__all__ = ["evaluate"]

DEFAULT_PRESETS = "vkq-1bit,quantile-1bit,calibquant-1bit,kivi-2bit"


def evaluate(
    model: Annotated[str, typer.Option(help='Checkpoint folder, or "tiny".')] = "tiny",
    tasks: Annotated[str, typer.Option(help='Comma-separated names, or "all".')] = "all",
    quant: Annotated[
        str, typer.Option(help="Presets to compare with full precision, comma-separated.")
    ] = DEFAULT_PRESETS,
    quantize_at: QuantizeAtOption = "image",
    samples: Annotated[
        int,
        typer.Option(
            min=1,
            help="Questions in all, spread evenly over the tasks (the first ones get one more; a "
            "task that has fewer gives all it has, and the others share the rest).",
        ),
    ] = 200,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the pictures or samples drawn, and of the intervals.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    results: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file to write; FILE.samples.jsonl beside it is the log."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the log; without it a run starts anew."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Right answers, and what each preset loses against full precision, question by question.

    exact: share of answers that are right word for word. lost: points of it that full precision
    has more, paired; intervals are 95 % (Wilson; bootstrap over pictures). agreement: share of
    answers equal to full precision's own. kl: mean KL(full precision || preset) of the next-token
    distributions along full precision's own answer, in nats.
    """
    started = time.perf_counter()
    settings = parse_settings(quant)
    if resume and results is None:
        raise ValueError("--resume: expected --out, whose log is gone on from")
    if results is not None:
        check_writable(results)
        check_writable(log_path(results))
    chosen = choose_tasks(tasks, synthetic_tasks())
    shares = spread(samples, chosen)
    with stage(f"loading {model}"):
        loaded = models.load(model)
    assert loaded.source is not None
    with stage("choosing questions"):
        plan = {task.name: (task, task.choose(shares[task.name], seed)) for task in chosen}
    batches = [
        batch for task, some in plan.values() for batch in in_batches(task, some, batch_size)
    ]
    asked: dict[str, Any] = {
        "model": model,
        "tasks": [task.name for task in chosen],
        "quant": [setting.name for setting in settings],
        "quantize_at": quantize_at,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
    }
    head = {"command": "vkq eval", **provenance(), **asked}
    marks = {
        **asked,
        "weights": fingerprint(Path(loaded.source)),
        "codes": {setting.name: repr(setting.quant) for setting in settings},
        "device": head["device"],
        "source": source_digest(),
    }
    sample_log = SampleLog(None if results is None else log_path(results), marks, resume=resume)
    total = sum(len(batch.samples) for batch in batches)
    with progress(log, total, "questions") as show:
        run(
            loaded,
            batches,
            settings,
            sample_log,
            quantize_at=quantize_at,
            on_batch=lambda batch: show(batch.task.name, len(batch.samples)),
        )
    record = {
        **head,
        "seconds": round(time.perf_counter() - started, 1),
        "offline_table_bytes": 0,
        "presets": summarize(sample_log, plan, settings, seed=seed),
    }
    write_json(results, record)
    if json:
        print_json(record)
    else:
        out.print(results_table(record))
