"""Settings of a training: the fields are the options of its command line."""

import dataclasses
from pathlib import Path
from typing import Any

from vkq_apps.terminal.standalone import option

__all__ = ["JUDGE", "SMOKE", "TrainOptions", "other_defaults"]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Settings of a training; the defaults are those of the first part of `train`'s recipe."""

    out: Path = option(Path("runs/tiny"), help="Folder of state.safetensors and log.jsonl.")
    steps: int = option(6400, help="Steps of all pieces together.")
    batch: int = option(256, help="Pictures of a step.")
    workers: int = option(14, help="Rendering processes; 0 renders each batch when it is needed.")
    pool: int = option(480, help="Chunks of pictures held on the device.")
    chunk: int = option(64, help="Pictures of a chunk.")
    mixed: int = option(8, help="Chunks that a batch is drawn from.")
    devices: int = option(1, help="Devices of this host that share every batch.", min=1)
    slots: int = option(28, help="Chunks in memory shared with the rendering processes.")
    heldout: int = option(128, help="Held-out pictures of each kind.")
    seed: int = option(1, help="Seed of parameters and pictures.")
    peak: float = option(3e-3, help="Highest learning rate.")
    warmup: int = option(150, help="Steps up to it.", min=1)
    easy: float = option(
        0.1, help="Share of the steps over which pictures grow to full difficulty."
    )
    shares: str = option(
        "",
        help="Shares of kinds of pictures, as text=0.5,table=0.2; the other kinds keep theirs.",
        metavar="KIND=NUMBER,...",
    )
    start_from: Path | None = option(
        None,
        help="Checkpoint folder whose weights a new training begins with; of a --text-tower, "
        "parts.safetensors of an earlier training.",
        metavar="PATH",
    )
    text_tower: Path | None = option(
        None,
        help="Folder or GGUF file of a pretrained text model: train a judge on it, whose vision "
        "tower is the embedded model's.",
        metavar="PATH",
    )
    rank: int = option(8, help="Rank of the adapters of a --text-tower.", min=1)
    stop_after_seconds: float = option(
        0.0, help="End this piece after so long, state saved (0: never)."
    )
    fit_steps: bool = option(
        False,
        help="Take as many --steps as fit into --stop-after-seconds, measured while it runs; the "
        "learning rate falls by them (with --text-tower).",
    )
    save_every: float = option(60.0, help="Seconds between saved states.")
    evaluate_every: float = option(60.0, help="Seconds between evaluations.")
    attention: str = option("auto", help="One of auto, cudnn, cudnn_padded and xla.")
    unroll: bool = option(
        True, help="Unroll the stacks of blocks: faster steps, longer compilation."
    )
    resume: bool = option(False, help="Go on from the saved state.")
    smoke: bool = option(False, help="A small model and a few steps.")


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


JUDGE = {"out": Path("runs/judge"), "steps": 1800, "batch": 64, "peak": 1e-3, "warmup": 100}
"""Overrides of `--text-tower`."""


def other_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The defaults that `--text-tower` and `--smoke` change, from the options that were given."""
    judge = JUDGE if given.get("text_tower") else {}
    return judge | (SMOKE if given.get("smoke") else {})
