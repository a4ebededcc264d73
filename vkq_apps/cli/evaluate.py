"""`vkq eval`: does 1 bit keep the answer? Held-out pictures, several presets, one table."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

import models
import vkq_jax
from vkq_apps.bench.results_file import write_json
from vkq_apps.cli.arguments import JsonOption, QuantizeAtOption
from vkq_apps.cli.console import log, out, print_json, stage
from vkq_apps.evals.answers import answer_all, in_batches, score
from vkq_apps.provenance import provenance
from vkq_apps.training.heldout import Question, questions, shuffled
from vkq_apps.training.pictures import KINDS
from vkq_jax.whole_file import check_writable

__all__ = ["evaluate"]

CONTROL = "none, shuffled images"
DEFAULT_PRESETS = "vkq-1bit,quantile-1bit,calibquant-1bit,minmax-1bit"


def evaluate(
    model: Annotated[str, typer.Option(help='A checkpoint of the recipe, or "tiny".')] = "tiny",
    quant: Annotated[str, typer.Option(help="Presets to compare, comma-separated.")] = (
        DEFAULT_PRESETS
    ),
    quantize_at: QuantizeAtOption = "image",
    pictures: Annotated[int, typer.Option(min=1, help="Held-out pictures of each kind.")] = 8,
    questions_per_picture: Annotated[
        int, typer.Option(min=1, help="At most so many questions about each picture.")
    ] = 2,
    calibration_pictures: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also with a static score map, from so many further pictures of each kind.",
        ),
    ] = 0,
    control: Annotated[
        bool, typer.Option(help="Also ask about another picture: what guessing would get.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    results: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    json: JsonOption = False,
) -> None:
    """Exact match on held-out questions and agreement with full precision, for each preset.

    Presets that calibrate scores at each step are also asked with a static map of theirs, if there
    are pictures to calibrate it with.
    """
    presets = [name for name in map(str.strip, quant.split(",")) if name not in ("", "none")]
    calibrated = [name for name in presets if vkq_jax.resolve(name).calibration is not None]
    if calibration_pictures and not calibrated:
        raise ValueError(f"--calibration-pictures: no preset of {quant!r} calibrates scores")
    if results is not None:
        check_writable(results)
    with stage(f"loading {model}"):
        loaded = models.load(model)
        asked, samples = _choose(pictures, calibration_pictures, questions_per_picture)
    truth = [question.answer for question in asked]
    groups = {
        "all": list(range(len(asked))),
        **{kind: [i for i, q in enumerate(asked) if q.kind == kind] for kind in KINDS},
    }
    record: dict[str, Any] = {
        "command": "vkq eval",
        **provenance(),
        "model": model,
        "quantize_at": quantize_at,
        "calibration_questions": len(samples),
        "questions": len(asked),
        "presets": {},
    }
    exact: list[str] = []
    with Progress(console=log, transient=True) as progress:
        runs: list[tuple[str, str, list[Question], vkq_jax.ScoreMap | None]]
        runs = [(name, name, asked, None) for name in ["none", *presets]]
        for name in calibrated if samples else ():
            task = progress.add_task(f"{name}: calibrating", total=None)
            batches = in_batches(loaded, samples, batch_size)
            static = models.calibrate_scores(loaded, batches, quant=name, quantize_at=quantize_at)
            progress.remove_task(task)
            runs.append((f"{name}, static scores", name, asked, static))
        if control:
            runs.append((CONTROL, "none", [shuffled(question) for question in asked], None))
        for name, preset, pictured, score_map in runs:
            task = progress.add_task(name, total=len(asked))
            answers, nbytes = answer_all(
                loaded,
                pictured,
                preset,
                quantize_at=quantize_at,
                score_map=score_map,
                batch_size=batch_size,
                on_batch=lambda done, task=task: progress.advance(task, done),
            )
            exact = exact or answers
            scores = {
                group: score(*([texts[i] for i in members] for texts in (answers, truth, exact)))
                for group, members in groups.items()
            }
            record["presets"][name] = {
                "visual_kv_reduction": round(nbytes.visual_reduction, 4),
                "scores": {group: vars(value) for group, value in scores.items()},
            }
    write_json(results, record)
    if json:
        print_json(record)
    else:
        out.print(_table(record))


def _choose(
    pictures: int, calibration_pictures: int, per_picture: int
) -> tuple[list[Question], list[Question]]:
    """Questions to score, and others about further pictures to calibrate with."""
    chosen: dict[tuple[str, int], int] = {}
    scored, samples = [], []
    for question in questions(pictures + calibration_pictures):
        place = (question.kind, question.index)
        chosen[place] = chosen.get(place, 0) + 1
        if chosen[place] <= per_picture:
            (scored if question.index < pictures else samples).append(question)
    return scored, samples


def _table(record: dict[str, Any]) -> Table:
    table = Table(
        title=f"{record['questions']} held-out questions, visual cache coded at the "
        f"{record['quantize_at']}: % right / % as at full precision"
    )
    table.add_column("visual cache", no_wrap=True)
    table.add_column("saved", justify="right", no_wrap=True)
    groups = list(record["presets"]["none"]["scores"])
    for group in groups:
        table.add_column(group, justify="right", no_wrap=True)
    for name, row in record["presets"].items():
        cells = [
            f"{row['scores'][group]['exact']:.0%}/{row['scores'][group]['agreement']:.0%}"
            for group in groups
        ]
        table.add_row(name, f"{row['visual_kv_reduction']:.1%}", *cells)
    return table
