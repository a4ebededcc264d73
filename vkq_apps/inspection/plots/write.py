"""All plots of an inspection, as files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from models.vision.vit import VitConfig
from vkq_apps.inspection.layout import Segment
from vkq_apps.inspection.measure import Inspection
from vkq_apps.inspection.pictures import patch_maps
from vkq_apps.inspection.plots.attention import plot_attention, plot_mass, plot_tokens
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
) -> dict[str, str]:
    """Writes PNG files and returns their names, each with the title of its plot.

    Args:
        folder: where to.
        quant: what the coded cache is called in the plots.
        inspection: see `inspect_visual`. segments: see `read_layout`.
        pictures: uint8 [images, side, side, 3], see `seen_pictures`.
        vision: for the patch grid.
    """
    titles = {}
    with styled():
        for name, figure in _figures(quant, inspection, segments, pictures, vision):
            figure.savefig(folder / name)
            titles[name] = figure.get_suptitle()
    return titles


def _figures(
    quant: str,
    inspection: Inspection,
    segments: Sequence[Segment],
    pictures: np.ndarray,
    vision: VitConfig,
) -> Iterator[tuple[str, Figure]]:
    yield "prompt.png", plot_layout(quant, segments, inspection.nbytes)
    yield from _maps(quant, inspection, pictures, vision)
    mass = (np.asarray(part.visual_mass) for part in (inspection.before, inspection.after))
    yield "attention_mass.png", plot_mass(quant, *mass)
    yield (
        "errors.png",
        plot_errors(
            quant,
            np.asarray(inspection.key.error.relative_squared_error),
            np.asarray(inspection.value.error.relative_squared_error),
            np.asarray(inspection.output_error),
        ),
    )
    for name, tensor in (("keys", inspection.key), ("values", inspection.value)):
        ranges = tensor.ranges
        optional = (ranges.coded_quantiles, ranges.lowest, ranges.highest)
        arrays = (None if array is None else np.asarray(array) for array in optional)
        yield (
            f"ranges_{name}.png",
            plot_ranges(name, quant, np.asarray(ranges.quantiles), *arrays),
        )


def _maps(
    quant: str, inspection: Inspection, pictures: np.ndarray, vision: VitConfig
) -> Iterator[tuple[str, Figure]]:
    """The plots that lie over a picture."""
    before, after = (
        patch_maps(np.asarray(part.visual).mean(1), vision)  # [L, images, rows, columns]
        for part in (inspection.before, inspection.after)
    )
    tokens = {
        "bits per element": patch_maps(np.asarray(inspection.bits), vision),
        "error of the key": patch_maps(np.asarray(inspection.key.error_of_tokens), vision),
        "error of the value": patch_maps(np.asarray(inspection.value.error_of_tokens), vision),
        "attention before [%]": 100 * before,
        "attention after [%]": 100 * after,
    }
    bits = float(inspection.bits.mean())
    for index, picture in enumerate(pictures):
        suffix = f"_{index + 1}" if len(pictures) > 1 else ""
        maps = {title: figures[:, index].mean(0) for title, figures in tokens.items()}
        yield f"tokens{suffix}.png", plot_tokens(quant, picture, maps, bits)
        yield (
            f"attention{suffix}.png",
            plot_attention(quant, picture, before[:, index], after[:, index]),
        )
