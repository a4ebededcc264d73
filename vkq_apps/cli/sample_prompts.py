"""Sample prompts of the commands that calibrate: their options, and the way to batches."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import models
from models import Inputs, Model
from vkq_apps.cli.arguments import whole_prompt
from vkq_apps.cli.counts import check_count

__all__ = ["AnswerTokensOption", "BatchSizeOption", "TablesOutOption", "batches_of"]

AnswerTokensOption = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        min=1,
        metavar="N",
        callback=check_count,
        help="Most tokens of each answer.",
    ),
]
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
TablesOutOption = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="safetensors file to write."),
]


def batches_of(model: Model, pairs: Sequence[tuple[Any, str]], batch_size: int) -> Iterator[Inputs]:
    """Pictures, each with a question, as the model takes them."""
    for batch in itertools.batched(pairs, batch_size):
        inputs = models.prepare(
            model,
            images=[picture for picture, _ in batch],
            prompts=[whole_prompt(model, question) for _, question in batch],
        )
        yield models.pad_to_multiple(inputs, 32)
