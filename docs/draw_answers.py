"""Draws `answers.png`: the error of each preset against its bits, from results/answers.json.

uv run python docs/draw_answers.py
"""

import json
import sys
from pathlib import Path

from PIL import Image

from vkq_apps.inspection.plots.style import AFTER, BEFORE, INK, new_figure, styled

DOCS = Path(__file__).parent
_OWN = ("vkq-", "signs-")


def points() -> dict[str, tuple[float, float]]:
    """Bits per element, tables included, and KL of the next token in nats, of each preset."""
    presets = json.loads((DOCS.parent / "results" / "answers.json").read_text())["presets"]
    return {
        name: (row["bits_per_element"]["mean"], row["tasks"]["all"]["kl"])
        for name, row in presets.items()
        if name != "none"
    }


def main(path: Path) -> None:
    """Draws all presets into one PNG file."""
    with styled():
        figure = new_figure(
            7.0,
            3.4,
            "Divergence from the 16-bit cache against bits per number",
            "Lower and further left is better. Orange: codes of this library; blue: settings of "
            "published methods.",
        )
        axes = figure.subplots()
        for name, (bits, kl) in points().items():
            colour = AFTER if name.startswith(_OWN) else BEFORE
            axes.plot(bits, kl, "o", markersize=5.0, color=colour)
            place = "bottom" if name.endswith(":plain") else "center"  # above that with tables
            axes.annotate(name, (bits, kl), (6, 0), textcoords="offset points", va=place, color=INK)
        axes.set_yscale("log")
        axes.set_xlim(0.5, 3.7)
        axes.set_xlabel("bits per number of the visual cache, tables included (16 without codes)")
        axes.set_ylabel("KL of the next token, nats")
        figure.savefig(path)
    Image.open(path).convert("RGB").quantize(32).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "answers.png")
