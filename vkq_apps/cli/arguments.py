"""What several commands take, and the way from there to a model and its inputs."""

from pathlib import Path
from typing import Annotated

import typer

import models
import vkq_jax
from models import Inputs, Model
from models.generate import QuantizeAt
from vkq_apps.cli.console import stage

__all__ = [
    "JsonOption",
    "QuantOption",
    "QuantizeAtOption",
    "ScoreMapOption",
    "check_question",
    "describe_images",
    "load_and_prepare",
    "whole_prompt",
]

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
QuantOption = Annotated[
    str, typer.Option(help=f"Preset of the visual cache: {', '.join(vkq_jax.presets)}.")
]
QuantizeAtOption = Annotated[
    QuantizeAt, typer.Option(help="Code images after the whole prompt, or before the question.")
]
ScoreMapOption = Annotated[
    Path | None,
    typer.Option("--score-map", help="Static score calibration, a file of `vkq calibrate`."),
]


def load_and_prepare(source: str, images: list[Path], prompt: str) -> tuple[Model, str, Inputs]:
    """The model, the whole prompt, and the inputs."""
    check_question(prompt)
    with stage(f"loading {source}"):
        model = models.load(source)
        prompt = whole_prompt(model, prompt, num_images=len(images))
        return model, prompt, models.prepare(model, images=list(images), prompts=prompt)


def check_question(prompt: str) -> None:
    """Raises ValueError for a prompt without a word."""
    if not prompt.strip():
        raise ValueError(f"--prompt: expected a question, or a prompt with <image>, got {prompt!r}")


def whole_prompt(model: Model, prompt: str, *, num_images: int = 1) -> str:
    """A bare question in the chat template; a prompt with <image> in it as it is."""
    if "<image>" in prompt:
        return prompt
    return models.chat_prompt(model, prompt, num_images=num_images)


def describe_images(images: list[Path]) -> str | list[str]:
    """The files in a record: one path, or the list of several."""
    return str(images[0]) if len(images) == 1 else [str(path) for path in images]
