"""Options that the commands of `vkq bench` share, and the lists in them."""

from pathlib import Path
from typing import Annotated

import typer

import pallas_kernels
import vkq_jax
from models.sharding.mesh import mesh_sizes
from pallas_kernels.shapes import SHAPES
from vkq_apps.bench.codes import CODES_HELP
from vkq_apps.terminal.counts import check_count
from vkq_apps.terminal.hosts import HOSTS_HELP

__all__ = [
    "NO_MESH",
    "Baselines",
    "Implementations",
    "Meshes",
    "Out",
    "Preset",
    "Presets",
    "PromptText",
    "Repeats",
    "Resume",
    "Seconds",
    "Sequences",
    "Shapes",
    "TextCapacity",
    "meshes_of",
]


NO_MESH = "none"


def meshes_of(texts: list[str] | None) -> list[str | None]:
    """Meshes as rows have them: None for one device without a mesh."""
    return [None if text == NO_MESH else text for text in texts or [NO_MESH]]


def _check_meshes(texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        if text != NO_MESH:
            mesh_sizes(text)
    return texts


Shapes = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help=f"Shapes, comma-separated: {', '.join(SHAPES)}.",
        show_default="all but tiny",
    ),
]
Presets = Annotated[
    str,
    typer.Option(
        "--quant",
        metavar="NAMES",
        help="Codes of the visual cache, comma-separated: "
        f"{', '.join(vkq_jax.presets)}. {CODES_HELP}",
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        "--quant", metavar="NAME", help=f"Codes of the visual cache, a preset. {CODES_HELP}"
    ),
]
Implementations = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Implementations of attention, comma-separated: auto, "
        f"{', '.join(pallas_kernels.IMPLEMENTATIONS)}.",
    ),
]
Baselines = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Implementations of attention in bf16, comma-separated; rows are compared with the "
        "fastest. `vkq bench throughput` takes transformers, too: its own generate, where PyTorch "
        "is installed.",
    ),
]
Meshes = Annotated[
    list[str] | None,
    typer.Option(
        "--mesh",
        metavar="data=N,model=N",
        callback=_check_meshes,
        help="Devices to split the model over; repeat for several meshes; none: one device. "
        + HOSTS_HELP,
    ),
]
Repeats = Annotated[
    int,
    typer.Option(min=1, max=1000, metavar="N", help="Timings of each row; the median counts."),
]
PromptText = Annotated[
    int, typer.Option(min=2, metavar="N", callback=check_count, help="Text tokens of a prompt.")
]
Sequences = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        callback=check_count,
        help="Most sequences at once; by default as many as fit.",
    ),
]
TextCapacity = Annotated[
    int,
    typer.Option(min=1, metavar="N", callback=check_count, help="Text tokens a sequence can hold."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="JSON file to write, row by row.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep the file's rows of this code and device.")
]
Seconds = Annotated[
    float | None,
    typer.Option(min=0, metavar="S", help="Begin no row that would end later than this."),
]
