"""Settings of a training, and their command line."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

__all__ = ["SMOKE", "TrainOptions", "parse_options"]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Settings of a training; the defaults are those of the first part of `train`'s recipe."""

    out: Path = Path("runs/tiny")
    steps: int = 6400
    batch: int = 256
    workers: int = 14
    pool: int = 480
    chunk: int = 64
    mixed: int = 8
    slots: int = 28
    heldout: int = 128
    seed: int = 1
    peak: float = 3e-3
    warmup: int = 150
    easy: float = 0.1
    start_from: str = ""
    stop_after_seconds: float = 0.0
    save_every: float = 60.0
    evaluate_every: float = 60.0
    attention: str = "auto"
    unroll: bool = True
    resume: bool = False
    smoke: bool = False


SMOKE = {
    "steps": 12,
    "batch": 4,
    "workers": 0,
    "heldout": 4,
    "warmup": 4,
    "evaluate_every": 1e9,
    "unroll": False,
}
"""Overrides of `--smoke`: a few seconds on a CPU, with a small model."""

_HELP = {
    "out": "folder of state.safetensors and log.jsonl",
    "steps": "steps of all pieces together",
    "batch": "pictures of a step",
    "workers": "rendering processes; 0 renders each batch when it is needed",
    "pool": "chunks of pictures held on the device",
    "chunk": "pictures of a chunk",
    "mixed": "chunks that a batch is drawn from",
    "slots": "chunks in memory shared with the rendering processes",
    "heldout": "held-out pictures of each kind",
    "seed": "of parameters and pictures",
    "peak": "highest learning rate",
    "warmup": "steps up to it",
    "easy": "share of the steps over which pictures grow to full difficulty",
    "start_from": "checkpoint folder whose weights a new training begins with",
    "stop_after_seconds": "end this piece after so long, state saved (0: never)",
    "save_every": "seconds between saved states",
    "evaluate_every": "seconds between evaluations",
    "attention": "auto, cudnn, cudnn_padded or xla",
    "unroll": "unroll the stacks of blocks: faster steps, longer compilation",
    "resume": "go on from the saved state",
    "smoke": "a small model and a few steps",
}


def parse_options(arguments: list[str] | None = None) -> TrainOptions:
    """Options from the command line."""
    parser = argparse.ArgumentParser(
        prog="vkq_apps.training.train", description="Trains the embedded model."
    )
    for field in dataclasses.fields(TrainOptions):
        name, default = "--" + field.name.replace("_", "-"), field.default
        if isinstance(default, bool):
            parser.add_argument(
                name, action=argparse.BooleanOptionalAction, default=None, help=_HELP[field.name]
            )
        else:
            text = f"{_HELP[field.name]} (default: {default})"
            parser.add_argument(name, type=type(default), default=None, help=text)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items()
             if value is not None}  # fmt: skip
    return TrainOptions(**(SMOKE if given.get("smoke") else {}) | given)
