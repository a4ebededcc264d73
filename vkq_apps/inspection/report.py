"""One page with the picture, the prompt, both answers and all plots."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vkq_jax.byte_units import human_bytes

__all__ = ["REPORT", "write_report"]

REPORT = "report.html"

_FIGURES = {
    "error of keys": ("key_error", "{:.3f}"),
    "error of values": ("value_error", "{:.3f}"),
    "error of the attention output, last token": ("output_error", "{:.3f}"),
    "attention on visual tokens, full precision": ("visual_mass_full_precision", "{:.1%}"),
    "attention on visual tokens, coded": ("visual_mass", "{:.1%}"),
    "attention that moved to other tokens": ("moved", "{:.1%}"),
}


def write_report(
    folder: Path,
    record: Mapping[str, Any],
    pictures: Sequence[np.ndarray],
    plots: Mapping[str, str],
    *,
    bits: float,
) -> None:
    """Writes `REPORT`, which holds its pictures itself and can be moved.

    Args:
        folder: with the plots.
        record: of `vkq inspect`, its answers among it.
        pictures: uint8 [height, width, 3] each.
        plots: title of each file, in their order.
        bits: per element of the visual cache, tables included.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    figures = [
        (name, *(form.format(record[kind][key]) for kind in ("mean", "median")))
        for name, (key, form) in _FIGURES.items()
    ]
    shown = {
        **record,
        "bits": f"{bits:.2f}",
        "figures": figures,
        "pictures": [_source(_png(picture)) for picture in pictures],
        "plots": [
            (name, title, _source((folder / name).read_bytes())) for name, title in plots.items()
        ],
        "saved": f"{record['visual_kv_reduction']:.1%}",
        "size": human_bytes(record["visual_kv_bytes"]),
        "size_full_precision": human_bytes(record["visual_kv_bytes_full_precision"]),
    }
    text = environment.get_template("report.html.jinja").render(shown)
    # A file name may hold bytes that are no UTF-8.
    (folder / REPORT).write_text(text, encoding="utf-8", errors="backslashreplace")


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
