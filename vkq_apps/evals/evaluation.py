"""An evaluation from its arguments to its results."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from models import Model
from models.generation.argument_checks import check_quantize_at
from models.generation.options import QuantizeAt
from models.loading import TINY
from vkq_apps.evals.batches import Batch
from vkq_apps.evals.checkpoint_digest import checkpoint_digest
from vkq_apps.evals.finished import FinishedRun
from vkq_apps.evals.plan import Plan
from vkq_apps.evals.records import SampleLog, log_path
from vkq_apps.evals.report import summarize
from vkq_apps.evals.runner import run
from vkq_apps.evals.settings import CONTROL, NONE, Setting
from vkq_apps.files.provenance import provenance
from vkq_apps.files.results_file import source_digest, write_json
from vkq_jax.pytree import nbytes
from vkq_jax.sharding.hosts import to_host

__all__ = ["Options", "evaluate_model", "marks_of"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of an evaluation beside its plan; names as in `vkq eval --help`."""

    quantize_at: QuantizeAt
    samples: int
    seed: int
    batch_size: int
    control: bool = False
    by_layer: bool = False
    implementation: str | None = None


def evaluate_model(
    model: Model,
    plan: Plan,
    settings: Sequence[Setting],
    options: Options,
    *,
    results: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, more, total: None,
) -> dict[str, Any]:
    """Asks all questions with all settings.

    Args:
        model: from `models.load`.
        plan: from `make_plan`.
        settings: from `settings_of`: full precision first.
        options: the rest.
        results: JSON file to write at the end; the log of samples lies beside it.
        resume: go on from the log; presets in the file are not asked again.
        progress: called with what is being asked, how many more questions are done, and how many
            there are.

    Returns:
        The record that the file holds.

    Raises:
        NotImplementedError: pictures were to be coded before a question that they attend to.
    """
    check_quantize_at(model, options.quantize_at)
    started = time.perf_counter()
    assert model.source is not None
    head = provenance()
    asked: dict[str, Any] = {
        "tasks": list(plan.tasks),
        "quant": [setting.name for setting in settings],
        **dataclasses.asdict(options),
    }
    marks = {
        **marks_of(plan, settings, options),
        "weights": checkpoint_digest(model),
        "device": head["device"],
    }
    finished, todo = None, list(settings)
    path = None if results is None else log_path(results)
    if resume and results is not None and results.exists():
        finished = FinishedRun(results, marks)
        path = log_path(results.with_name(f"{results.name}.added"))
        if finished.has([*marks["codes"], *([CONTROL.name] if options.control else [])]):
            path.unlink(missing_ok=True)  # a kill may have come between the two
            return finished.record
        todo = [s for s in settings if s.name not in finished.known or s.name == NONE]
    names = [setting.name for setting in todo]
    log_marks = {**asked, **marks, "quant": names, "source": source_digest()}
    log = SampleLog(path, log_marks, resume=resume)
    presets = _ask(model, plan, todo, options, log, head["commit"], progress)
    seconds = time.perf_counter() - started
    if finished is not None:
        order = [*asked["quant"], *(n for n in presets if n not in asked["quant"])]
        presets = finished.join(presets, order, NONE)
        seconds += finished.record["seconds"]
    record = {
        "command": "vkq eval",
        **head,
        "model": "tiny" if Path(model.source) == TINY else model.source,
        **asked,
        "seconds": round(seconds, 1),
        "offline_table_bytes": {
            setting.name: nbytes(setting.tables)
            for setting in settings
            if setting.tables is not None
        },
        "marks": marks,
        "presets": presets,
    }
    write_json(results, record)
    if finished is not None and path is not None:
        path.unlink()
    return record


def _ask(
    model: Model,
    plan: Plan,
    settings: Sequence[Setting],
    options: Options,
    log: SampleLog,
    commit: str | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, dict[str, Any]]:
    """The row of each setting, and that of the control: the questions about other pictures.

    `commit` is that of the code; the other arguments are those of `evaluate_model`.
    """
    jobs: list[tuple[Plan, Sequence[Setting]]] = [(plan, settings)]
    if options.control:
        jobs.append((plan.exchanged(), [CONTROL]))
    batches_of = [one.batches(options.batch_size) for one, _ in jobs]
    total = sum(len(batch.samples) for batches in batches_of for batch in batches)

    def on_batch(batch: Batch) -> None:
        progress(batch.task.name, len(batch.samples), total)

    found: dict[str, dict[str, Any]] = {}
    for (one, some), batches in zip(jobs, batches_of, strict=True):
        run(
            model,
            batches,
            some,
            log,
            quantize_at=options.quantize_at,
            by_layer=options.by_layer,
            implementation=options.implementation,
            on_batch=on_batch,
        )
        rows = summarize(log, one.tasks, some, seed=options.seed)
        codes = {setting.name: repr(setting.quant) for setting in some}
        found |= {
            name: {"codes": codes[name], "commit": commit, **row} for name, row in rows.items()
        }
    return found


def marks_of(plan: Plan, settings: Sequence[Setting], options: Options) -> dict[str, Any]:
    """All that answers depend on beside weights and device; large parts by their digests.

    Arguments are those of `evaluate_model`.
    """
    return {
        "tasks": list(plan.tasks),
        **dataclasses.asdict(options),
        "questions": plan.digest(),
        "codes": {setting.name: _digest(setting) for setting in settings},
    }


def _digest(setting: Setting) -> str:
    """A digest of the codes and their tables: a run with other codes is not resumed."""
    digest = hashlib.sha256(repr(setting.quant).encode())
    for leaf in jax.tree.leaves(setting.tables):
        digest.update(to_host(leaf).tobytes())
    return digest.hexdigest()[:16]
