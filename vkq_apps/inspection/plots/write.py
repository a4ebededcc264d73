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
from vkq_apps.inspection.summary import name_of_kind

__all__ = ["write_plots"]


def write_plots(
    folder: Path,
    *,
    quant: str,
    kinds: Sequence[Inspection],
    segments: Sequence[Segment],
    pictures: Sequence[np.ndarray],
    vision: VitConfig | None,
) -> dict[str, str]:
    """Writes PNG files and returns their names, each with the title of its plot.

    Args:
        folder: where to.
        quant: what the coded cache is called in the plots.
        kinds: see `inspect_visual`; files of each have its name, where there are several.
        segments: see `read_layout`.
        pictures: uint8 [side, side, 3] each, see `seen_pictures`.
        vision: for the patch grid; None where a visual token is no patch: nothing is drawn over a
            picture.
    """
    titles = {}
    with styled():
        for name, figure in _figures(quant, kinds, segments, pictures, vision):
            figure.savefig(folder / name)
            titles[name] = figure.get_suptitle()
    return titles


def _figures(
    quant: str,
    kinds: Sequence[Inspection],
    segments: Sequence[Segment],
    pictures: Sequence[np.ndarray],
    vision: VitConfig | None,
) -> Iterator[tuple[str, Figure]]:
    yield "prompt.png", plot_layout(quant, segments, kinds[0].nbytes)
    for kind in kinds:
        suffix, named = "", quant
        if len(kinds) > 1:
            suffix = f"_{name_of_kind(kind)}"
            named = f"{quant}, {name_of_kind(kind).replace('_', ' ')} channels"
        if vision is not None:
            yield from _maps(named, suffix, kind, pictures, vision)
        yield from _tables(named, suffix, kind)


def _tables(quant: str, suffix: str, inspection: Inspection) -> Iterator[tuple[str, Figure]]:
    """The plots by layer and head."""
    before, after = (np.asarray(part.visual_mass) for part in (inspection.before, inspection.after))
    yield f"attention_mass{suffix}.png", plot_mass(quant, before, after, inspection.layers)
    yield (
        f"errors{suffix}.png",
        plot_errors(
            quant,
            np.asarray(inspection.key.error.relative_squared_error),
            np.asarray(inspection.value.error.relative_squared_error),
            np.asarray(inspection.output_error),
            inspection.layers,
        ),
    )
    for name, tensor in (("keys", inspection.key), ("values", inspection.value)):
        ranges = tensor.ranges
        coded, lowest, highest = (
            None if array is None else np.asarray(array)
            for array in (ranges.coded_quantiles, ranges.lowest, ranges.highest)
        )
        quantiles, numbers = np.asarray(ranges.quantiles), inspection.layers
        figure = plot_ranges(name, quant, quantiles, coded, lowest, highest, numbers)
        yield f"ranges_{name}{suffix}.png", figure


def _maps(
    quant: str,
    suffix: str,
    inspection: Inspection,
    pictures: Sequence[np.ndarray],
    vision: VitConfig,
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
        end = f"_{index + 1}{suffix}" if len(pictures) > 1 else suffix
        maps = {title: figures[:, index].mean(0) for title, figures in tokens.items()}
        yield f"tokens{end}.png", plot_tokens(quant, picture, maps, bits)
        shown = before[:, index], after[:, index], inspection.layers
        yield f"attention{end}.png", plot_attention(quant, picture, *shown)
