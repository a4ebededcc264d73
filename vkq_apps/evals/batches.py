"""Rows and batches: what the device sees of the samples of one task."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import models
from models import Inputs, Model
from models.generation.context import context_length
from models.generation.options import QuantizeAt
from models.generation.teacher_forcing import EvaluatedModel, Reading, parts_of
from models.prompts.processor import processor_of
from vkq_apps.evals.samples import Sample
from vkq_apps.evals.tasks import Task
from vkq_jax.messages import show

__all__ = ["Batch", "Prepared", "in_batches", "prepare", "whole_inputs"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples that run together.

    Attributes:
        task: of the samples.
        samples: those that count.
        rows: one (sample's place, choice) for each row of the device's batch: a sample without
            choices has one row, with choice None; rows that only fill up have place -1.
    """

    task: Task
    samples: tuple[Sample, ...]
    rows: tuple[tuple[int, str | None], ...]

    @property
    def rows_of_samples(self) -> list[list[int]]:
        """The rows of each sample."""
        found: list[list[int]] = [[] for _ in self.samples]
        for row, (place, _) in enumerate(self.rows):
            if place >= 0:
                found[place].append(row)
        return found


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A batch as the model takes it; fields as in `EvaluatedModel.read`.

    Attributes:
        choices: tokens [Q, steps] and lengths [Q] of the choices; None where answers are free.
    """

    batch: Batch
    pictures: Inputs
    question: Inputs | None
    owner: jnp.ndarray
    choices: tuple[jnp.ndarray, jnp.ndarray] | None = None

    def read(self, evaluated: EvaluatedModel, *, steps: int) -> Reading:
        """The batch in full precision, with room for answers of `steps` tokens."""
        suffix = 0 if self.question is None else self.question.prompt_shape.suffix
        room = self.pictures.prompt_shape.text + suffix + steps
        return evaluated.read(self.pictures, self.question, self.owner, cache_length=room)


def in_batches(task: Task, samples: Sequence[Sample], size: int) -> Iterator[Batch]:
    """Batches of `size` rows; no sample is split, and all of a batch have choices or none has.

    Raises:
        ValueError: a sample has more choices than a batch has rows.
    """
    taken: list[Sample] = []
    rows: list[tuple[int, str | None]] = []
    for sample in samples:
        own: list[str | None] = [*sample.choices] or [None]
        if len(own) > size:
            raise ValueError(
                f"--batch-size: expected at least the {len(own)} choices of {task.name}'s sample "
                f"{sample.key}, got {size}"
            )
        unlike = bool(taken) and bool(taken[0].choices) != bool(sample.choices)
        if unlike or len(rows) + len(own) > size:
            yield _fill(task, taken, rows, size)
            taken, rows = [], []
        rows += [(len(taken), choice) for choice in own]
        taken.append(sample)
    if taken:
        yield _fill(task, taken, rows, size)


def _fill(task: Task, samples: list[Sample], rows: list, size: int) -> Batch:
    filler = (-1, rows[0][1])
    return Batch(task, tuple(samples), (*rows, *[filler] * (size - len(rows))))


def prepare(
    model: Model, batch: Batch, *, steps: int, quantize_at: QuantizeAt = "image"
) -> Prepared:
    """Reads or draws the pictures and tokenizes the questions of a batch, see `parts_of`.

    Raises:
        NotImplementedError: clips for a model that takes pictures alone.
        ValueError: a picture or clip that cannot be read, a prompt that the model does not take
            or that leaves its answer no room in the context; names the sample's file and line.
    """
    try:
        return _prepare(model, batch, steps, quantize_at)
    except ValueError:
        for sample, rows in zip(batch.samples, batch.rows_of_samples, strict=True):
            alone = tuple((0, batch.rows[row][1]) for row in rows)
            try:
                _prepare(model, Batch(batch.task, (sample,), alone), steps, quantize_at)
            except ValueError as error:
                place = batch.task.name if sample.place is None else sample.place()
                raise ValueError(f"{place}: sample {show(sample.key)}: {error}") from error
        raise


def _prepare(model: Model, batch: Batch, steps: int, quantize_at: QuantizeAt) -> Prepared:
    asked = [batch.samples[max(place, 0)] for place, _ in batch.rows]
    prompts = [_prompt(model, batch.task, sample) for sample in asked]
    loaded = {sample.picture: _visuals(sample) for sample in batch.samples}
    names = list(loaded)
    whole = _inputs(model, [loaded[sample.picture] for sample in asked], prompts)
    _check_context(model, batch.task, np.asarray(whole.mask.sum(axis=1)))
    pictures, question = parts_of(model, whole, quantize_at)
    few = _few(len(names), len(asked))
    if question is not None and few < len(asked):
        first = {sample.picture: prompt for sample, prompt in zip(asked, prompts, strict=True)}
        names_filled = [*names, *[names[0]] * (few - len(names))]
        shared = _inputs(
            model, [loaded[name] for name in names_filled], [first[name] for name in names_filled]
        )
        pictures, _ = parts_of(model, shared)
        owner = [names.index(sample.picture) for sample in asked]
    else:
        owner = list(range(len(asked)))
    choices = None
    if batch.samples[0].choices:
        choices = _choice_tokens(model, prompts, [choice for _, choice in batch.rows], steps)
    return Prepared(batch, pictures, question, jnp.asarray(owner, jnp.int32), choices)


def whole_inputs(model: Model, task: Task, samples: Sequence[Sample]) -> Inputs:
    """Pictures, clips and questions of samples, each with its own, as the model takes them."""
    prompts = [_prompt(model, task, sample) for sample in samples]
    return _inputs(model, [_visuals(sample) for sample in samples], prompts)


def _prompt(model: Model, task: Task, sample: Sample) -> str:
    pictures, clips = sample.num_pictures, len(sample.clips)
    return models.chat_prompt(model, task.ask(sample), num_images=pictures, num_videos=clips)


def _visuals(sample: Sample) -> tuple[Any, Any, Any]:
    """A sample's pictures, clips and number of frames, as `models.prepare` takes them."""
    return list(sample.load()) or None, list(sample.clips) or None, sample.num_frames


def _check_context(model: Model, task: Task, lengths: np.ndarray) -> None:
    longest, most = context_length(model.config), int(lengths.max())
    if most > longest - task.max_new_tokens:
        raise ValueError(
            f"expected at most {longest - task.max_new_tokens} tokens beside an answer of "
            f"{task.max_new_tokens}, since the model's context holds {longest}, got {most}"
        )


def _inputs(model: Model, visuals: list[tuple[Any, Any, Any]], prompts: list[str]) -> Inputs:
    """Inputs padded to lengths that many batches share; each prompt's pictures, clips, frames."""
    pictures, clips, frames = (list(each) for each in zip(*visuals, strict=True))
    videos: dict[str, Any] = {"videos": clips, "num_frames": frames} if any(clips) else {}
    inputs = models.prepare(model, images=pictures, prompts=prompts, **videos)
    return models.pad_to_multiple(inputs, 32)


def _few(pictures: int, rows: int) -> int:
    """The number of pictures, rounded up to a half, a quarter, ... of the rows: few shapes."""
    few = rows
    while few % 2 == 0 and few // 2 >= pictures:
        few //= 2
    return few


def _choice_tokens(
    model: Model, prompts: Sequence[str], choices: Sequence[str | None], steps: int
) -> tuple[jnp.ndarray, jnp.ndarray]:
    """The tokens that each choice adds to its prompt, and how many."""
    tokenizer = processor_of(model).tokenizer
    tokens, lengths = np.zeros((len(prompts), steps), np.int32), np.zeros(len(prompts), np.int32)
    for row, (prompt, choice) in enumerate(zip(prompts, choices, strict=True)):
        assert choice is not None
        before = tokenizer(prompt).input_ids
        space = "" if prompt[-1:].isspace() else " "
        whole = tokenizer(f"{prompt}{space}{choice}").input_ids
        added = whole[len(before) :]
        if whole[: len(before)] != before or not added or len(added) > steps:
            raise ValueError(
                f"choice {show(choice)}: expected 1 to {steps} tokens of its own behind the "
                f"prompt, got {len(added)}"
            )
        tokens[row, : len(added)], lengths[row] = added, len(added)
    return jnp.asarray(tokens), jnp.asarray(lengths)
