"""Options of choosing tokens at random."""

from typing import Annotated, Any

import jax
import typer

import models
from models import GenerateOptions
from vkq_apps.terminal.counts import check_count

__all__ = [
    "SeedOption",
    "TemperatureOption",
    "TopKOption",
    "TopPOption",
    "check_draws",
    "draw_options",
]

TemperatureOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Draw tokens at random; 0 takes the most probable ones."),
]
TopKOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", callback=check_count, help="Draw from the k most probable."),
]
TopPOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Draw from the most probable that reach this probability."),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", callback=check_count, help="Seed of the draws; 0 by default."),
]


def check_draws(
    temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None
) -> dict[str, Any] | None:
    """The options of drawing at random by name; None where none is given.

    Raises:
        ValueError: an option that greedy decoding would ignore.
    """
    others = {"--top-k": top_k, "--top-p": top_p, "--seed": seed}
    given = [option for option, value in others.items() if value is not None]
    if given and not temperature:
        raise ValueError(
            f"{given[0]}: expected a --temperature above 0 beside it, since only random draws heed "
            f"it; got {'none' if temperature is None else temperature}"
        )
    if temperature is None:
        return None
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return {**drawn, "seed": 0 if seed is None else seed}


def draw_options(drawn: dict[str, Any] | None) -> GenerateOptions:
    """The result of `check_draws` as options of `models.generate`.

    Raises:
        ValueError: a number out of its range.
    """
    if drawn is None:
        return {}
    settings = {name: value for name, value in drawn.items() if name != "seed"}
    return {"sampling": models.Sampling(**settings), "key": jax.random.key(drawn["seed"])}
