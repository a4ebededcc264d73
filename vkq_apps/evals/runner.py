"""Runs an evaluation, batch by batch, and logs every sample."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from models import Model
from models.generation.options import QuantizeAt
from models.generation.teacher_forcing import EvaluatedModel, Prompted, Reading, compare
from vkq_apps.evals.answers import Answers, Chosen, Written
from vkq_apps.evals.batches import Batch, Prepared, prepare
from vkq_apps.evals.cache_size import cache_size
from vkq_apps.evals.dropping import read_kept
from vkq_apps.evals.layers import layer_errors
from vkq_apps.evals.records import Record, SampleLog
from vkq_apps.evals.settings import Setting
from vkq_apps.terminal.endings import closing_pool
from vkq_jax.sharding.hosts import of_first_host, to_host

__all__ = ["run"]


def run(
    model: Model,
    batches: Sequence[Batch],
    settings: Sequence[Setting],
    log: SampleLog,
    *,
    quantize_at: QuantizeAt,
    by_layer: bool = False,
    implementation: str | None = None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
) -> None:
    """Asks every sample with every setting and logs what is not in the log yet.

    Args:
        model: from `models.load`.
        batches: from `in_batches`.
        settings: all of them are compared with full precision.
        log: of earlier and new records.
        quantize_at: as for `models.generate`.
        by_layer: also measure the errors in each layer, at each answer's first token.
        implementation: of attention over the cache and of coding, as for `models.generate`.
        on_batch: called when a batch is done, also one that was done before.
    """
    todo = []
    for batch in batches:
        missing = [setting for setting in settings if _unknown(log, batch, setting)]
        if missing:
            todo.append((batch, missing))
        else:
            on_batch(batch)
    steps = max(batch.task.max_new_tokens for batch in batches)
    evaluation = _Evaluation(
        EvaluatedModel(model, implementation), log, steps, quantize_at, by_layer
    )
    ready = partial(prepare, model, steps=steps, quantize_at=quantize_at)
    for prepared, missing in _prepared_ahead(ready, todo):
        evaluation.run_batch(prepared, missing)
        on_batch(prepared.batch)


def _unknown(log: SampleLog, batch: Batch, setting: Setting) -> bool:
    return any(log.get(setting.name, batch.task.name, s.key) is None for s in batch.samples)


def _prepared_ahead(
    ready: Callable[[Batch], Prepared], todo: Sequence[tuple[Batch, list[Setting]]]
) -> Iterator[tuple[Prepared, list[Setting]]]:
    """Prepares the next batch on the host while the device works on this one."""
    with closing_pool(ThreadPoolExecutor(1)) as pool:
        coming = None
        for place, (batch, missing) in enumerate(todo):
            prepared = (coming or pool.submit(ready, batch)).result()
            if place + 1 < len(todo):
                coming = pool.submit(ready, todo[place + 1][0])
            yield prepared, missing


@dataclass(frozen=True)
class _Evaluation:
    """Arguments that are the same for every batch; see `run`."""

    evaluated: EvaluatedModel
    log: SampleLog
    steps: int  # the most tokens of an answer
    quantize_at: QuantizeAt
    by_layer: bool

    def run_batch(self, prepared: Prepared, missing: Sequence[Setting]) -> None:
        """Asks a batch at full precision, then with every setting, and logs the answers."""
        reading = prepared.read(self.evaluated, steps=self.steps)
        answers: Answers
        if prepared.choices is None:
            answers = Written(self.evaluated, prepared.batch, reading.prompted, steps=self.steps)
        else:
            answers = Chosen(self.evaluated, prepared, reading.prompted)
        exact = answers.exact
        own = _fetched(compare(exact, exact))
        rows, lengths = answers.rows(own), to_host(exact.lengths)
        for setting in missing:
            prompted, comparison = reading.prompted, own
            if not setting.exact:
                prompted = self._read(prepared, reading, setting)
                coded = self.evaluated.follow(prompted, exact.tokens, exact.lengths)
                comparison = _fetched(compare(exact, coded))
            layers = None
            if self.by_layer and setting.kept is None and not setting.exact:
                first_tokens = exact.tokens[:, 0]
                layers = _fetched(
                    layer_errors(self.evaluated.model, reading.prompted, prompted, first_tokens)
                )
            texts = answers.texts(prompted, comparison)
            size = vars(cache_size(prompted.cache, reading.prompted.cache))
            self.log.add(
                Record(
                    preset=setting.name,
                    task=prepared.batch.task.name,
                    sample=sample.key,
                    answer=text,
                    positions=int(lengths[row]),
                    kl=float(comparison.kl[row]),
                    first_difference=_before_end(comparison.first_difference[row], lengths[row]),
                    layers=layers and {name: x[row].tolist() for name, x in layers.items()},
                    **size,
                )
                for sample, text, row in zip(prepared.batch.samples, texts, rows, strict=True)
                if self.log.get(setting.name, prepared.batch.task.name, sample.key) is None
            )

    def _read(self, prepared: Prepared, reading: Reading, setting: Setting) -> Prompted:
        """The prompts, read into the cache of a setting."""
        if setting.kept is not None:
            return read_kept(self.evaluated, reading, prepared.pictures, share=setting.kept)
        return self.evaluated.read_coded(
            reading,
            setting.tables,
            quant=setting.quant,
            quantize_at=self.quantize_at,
            text_bits=setting.text_bits,
        )


def _fetched[T](arrays: T) -> T:
    """The arrays in NumPy, wherever their parts lie, and the same ones on all hosts."""
    return of_first_host(jax.tree.map(to_host, arrays))


def _before_end(first: Any, length: Any) -> int | None:
    return int(first) if first < length else None
