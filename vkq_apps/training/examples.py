"""Writes a few held-out pictures and their questions: `python -m vkq_apps.training.examples`."""

import json
from pathlib import Path

from PIL import Image

from vkq_apps.training.heldout import heldout

__all__ = ["EXAMPLES", "write_examples"]

FOLDER = Path("examples/pictures")
EXAMPLES = {
    "receipt": ("document", 1),
    "text": ("text", 1),
    "scene": ("scene", 1),
    "shapes": ("shapes", 1),
    "bars": ("bars", 0),
    "table": ("table", 3),
}
"""Name of a file: kind and number of the held-out picture."""


def write_examples(folder: Path = FOLDER) -> None:
    """Writes the PNG files and questions.json: for each file its questions and right answers."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {}
    for name, (kind, index) in EXAMPLES.items():
        picture = heldout(kind, index)
        Image.fromarray(picture.image).save(folder / f"{name}.png", optimize=True)
        asked[f"{name}.png"] = {turn.question: turn.answer for turn in picture.turns}
    text = json.dumps(asked, indent=2, ensure_ascii=False) + "\n"
    (folder / "questions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_examples()
