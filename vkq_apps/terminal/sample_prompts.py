"""Sample prompts of the commands that calibrate: their options, and the way to batches."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

import models
from models import Clip, Inputs, Model
from vkq_apps.terminal.arguments import whole_prompt
from vkq_apps.terminal.counts import check_count

__all__ = ["BatchSizeOption", "batches_of"]

BatchSizeOption = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        callback=check_count,
        help="Prompts answered at once.",
    ),
]


def batches_of(
    model: Model,
    pairs: Sequence[tuple[Any, str]],
    batch_size: int,
    *,
    num_frames: int | None = None,
) -> Iterator[Inputs]:
    """Pictures and `Clip`s, each with a question, as the model takes them.

    Args:
        model, num_frames: as for `models.prepare`.
        pairs: a picture or clip and its question each.
        batch_size: pairs of a batch.
    """
    for batch in itertools.batched(pairs, batch_size):
        images, videos, prompts = [], [], []
        for visual, question in batch:
            clip = isinstance(visual, Clip)
            images.append(None if clip else visual)
            videos.append(visual if clip else None)
            counts = {"num_images": 0, "num_videos": 1} if clip else {}
            prompts.append(whole_prompt(model, question, **counts))
        filmed = any(videos)
        inputs = models.prepare(
            model,
            images=images,
            videos=videos if filmed else None,
            num_frames=num_frames if filmed else None,
            prompts=prompts,
        )
        yield models.pad_to_multiple(inputs, 32)
