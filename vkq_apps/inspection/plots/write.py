"""All plots of an inspection, as files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from models.vision.vit import VitConfig
from vkq_apps.inspection.layout import Segment
from vkq_apps.inspection.measure import Inspection
from vkq_apps.inspection.pictures import patch_maps
from vkq_apps.inspection.plots.attention import plot_attention, plot_mass
from vkq_apps.inspection.plots.errors import plot_errors
from vkq_apps.inspection.plots.layout import plot_layout
from vkq_apps.inspection.plots.ranges import plot_ranges
from vkq_apps.inspection.plots.style import styled

__all__ = ["write_plots"]


def write_plots(
    folder: Path,
    *,
    quant: str,
    inspection: Inspection,
    segments: Sequence[Segment],
    pictures: np.ndarray,
    vision: VitConfig,
) -> list[str]:
    """Writes PNG files and returns their names.

    Args:
        folder: where to.
        quant: what the coded cache is called in the plots.
        inspection: see `inspect_visual`. segments: see `read_layout`.
        pictures: uint8 [images, side, side, 3], see `seen_pictures`.
        vision: for the patch grid.
    """
    names = []
    with styled():
        for name, figure in _figures(quant, inspection, segments, pictures, vision):
            figure.savefig(folder / name)
            names.append(name)
    return names


def _figures(
    quant: str,
    inspection: Inspection,
    segments: Sequence[Segment],
    pictures: np.ndarray,
    vision: VitConfig,
) -> Iterator[tuple[str, Figure]]:
    yield "prompt.png", plot_layout(quant, segments, inspection.nbytes)
    for name, tensor in (("keys", inspection.key), ("values", inspection.value)):
        ranges = tensor.ranges
        optional = (ranges.coded_quantiles, ranges.lowest, ranges.highest)
        arrays = (None if array is None else np.asarray(array) for array in optional)
        yield (
            f"ranges_{name}.png",
            plot_ranges(name, quant, np.asarray(ranges.quantiles), *arrays),
        )
    yield (
        "errors.png",
        plot_errors(
            quant,
            np.asarray(inspection.key.error.relative_squared_error),
            np.asarray(inspection.value.error.relative_squared_error),
            np.asarray(inspection.output_error),
        ),
    )
    mass = (np.asarray(part.visual_mass) for part in (inspection.before, inspection.after))
    yield "attention_mass.png", plot_mass(quant, *mass)
    # [L, images, rows, columns], mean over heads.
    before, after = (
        patch_maps(np.asarray(part.visual).mean(1), vision)
        for part in (inspection.before, inspection.after)
    )
    for index, picture in enumerate(pictures):
        suffix = f"_{index + 1}" if len(pictures) > 1 else ""
        yield (
            f"attention{suffix}.png",
            plot_attention(quant, picture, before[:, index], after[:, index]),
        )
