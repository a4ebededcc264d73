"""Options that the commands of `vkq bench` share, and the lists in them."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

import pallas_kernels
import vkq_jax
from models.sharding.mesh import check_text
from pallas_kernels.shapes import SHAPES
from vkq_apps.bench.codes import CODES_HELP
from vkq_apps.terminal.counts import LARGEST, check_count
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
    "implementation_of",
    "layers_apart_with",
    "meshes_of",
    "names",
    "numbers",
]


NO_MESH = "none"


def meshes_of(texts: list[str] | None) -> list[str | None]:
    """Meshes as rows have them: None for one device without a mesh."""
    return [None if text == NO_MESH else text for text in texts or [NO_MESH]]


def _check_meshes(texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        if text != NO_MESH:
            check_text(text)
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


def names(option: str, text: str, known: Collection[str] | None = None) -> list[str]:
    """The entries of a comma-separated list, each once; at least one, and all of them known."""
    entries = _entries(text)
    if not entries:
        raise ValueError(f"{option}: expected names, comma-separated, got {text!r}")
    unknown = [entry for entry in entries if known is not None and entry not in known]
    if known is not None and unknown:
        raise ValueError(
            f"{option}: expected some of {', '.join(known)}, comma-separated, got {unknown[0]!r}"
        )
    return entries


def numbers[N: (int, float)](option: str, text: str, kind: type[N], count: int = 0) -> list[N]:
    """The numbers of a comma-separated list, `count` of them if it is given.

    They are positive, and finite or at most `LARGEST`.
    """
    try:
        numbers = [kind(entry) for entry in _entries(text)]
    except ValueError:
        numbers = []
    most = LARGEST if kind is int else sys.float_info.max
    in_range = all(0 < number <= most for number in numbers)
    if not numbers or not in_range or (count and len(numbers) != count):
        wanted = "positive integers below 2**31" if kind is int else "finite positive numbers"
        wanted = f"{count} {wanted}" if count else wanted
        raise ValueError(f"{option}: expected {wanted}, comma-separated, got {text!r}")
    return numbers


def _entries(text: str) -> list[str]:
    return list(dict.fromkeys(entry for entry in map(str.strip, text.split(",")) if entry))


def implementation_of(name: str) -> str | None:
    """The name as the libraries take it: None for the default."""
    if name == "auto":
        return None
    if name not in pallas_kernels.IMPLEMENTATIONS:
        known = ", ".join(pallas_kernels.IMPLEMENTATIONS)
        raise ValueError(f"implementation must be auto, {known}, got {name!r}")
    return name


def layers_apart_with(implementation: str | None) -> bool | None:
    """`layers_apart` of `models.load`: XLA takes stacks of layers, which compile faster."""
    return False if implementation == "xla" else None
