"""Parts of pictures by name: sprites, colours, shapes, form fields; and the questions asked."""

import functools
import json

import numpy as np
from PIL import Image

from vkq_apps.training.assets import ASSETS, COLUMNS, SPRITE_SIZE

__all__ = [
    "ADDED_WORDS",
    "COLORS",
    "FIELDS",
    "NUM_CLASSES",
    "SHAPES",
    "SPRITES",
    "SPRITE_PLURALS",
    "TASKS",
    "character_class",
    "color_class",
    "known_words",
    "number_class",
    "shape_class",
    "sprite_class",
    "sprite_pixels",
]

_ENTRIES = json.loads((ASSETS / "sprites.json").read_text(encoding="utf-8"))
SPRITES: tuple[str, ...] = tuple(entry["name"] for entry in _ENTRIES)
SPRITE_PLURALS: tuple[str, ...] = tuple(entry["plural"] for entry in _ENTRIES)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "blue": (40, 80, 220),
    "green": (40, 160, 60),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "black": (25, 25, 25),
    "pink": (250, 140, 190),
}
SHAPES = ("circle", "square", "triangle", "star")

# Kind of value that a field of a receipt or form holds; see `pictures.documents`.
FIELDS = {
    "name": "name", "email": "name", "date": "date", "time": "time", "phone": "phone",
    "total": "money", "tax": "money", "price": "money", "tip": "money", "cash": "money",
    "change": "money", "order": "number", "room": "number", "table": "number", "code": "number",
    "seat": "number", "gate": "number", "item": "word", "city": "word", "clerk": "word",
}  # fmt: skip

TASKS = (
    "read_one",
    "read_line",
    "document_field",
    "caption",
    "sprite_count",
    "presence",
    "position",
    "place",
    "shape_count",
    "shape_color",
    "bar_value_printed",
    "bar_value_axis",
    "bar_color",
    "bar_extreme",
    "read_lines",
    "field_list",
    "bar_list",
    "table_row",
    "table_column",
    "table_cell",
)

_QUESTION_WORDS = (
    "describe what how where which read is are there the picture image text line number many left "
    "right of above below top middle bottom center in a an and bar bars value color tallest "
    "shortest shape shapes yes no on it"
)


ADDED_WORDS = ("row", "column", "lines", "fields", "list")
"""Words that came after the first training: they have the last ids, so that all others stay."""


@functools.cache
def known_words() -> tuple[str, ...]:
    """Every word that questions and answers use; all else is spelled by character.

    Sorted, and `ADDED_WORDS` at the end.
    """
    words = [
        *_QUESTION_WORDS.split(), *SPRITES, *SPRITE_PLURALS, *COLORS,
        *SHAPES, *(shape + "s" for shape in SHAPES), *FIELDS,
    ]  # fmt: skip
    return *sorted(set(words)), *ADDED_WORDS


# Classes of the auxiliary head: 0 is none, then characters, sprites, coloured shapes and colours.
# Numbers share their classes with characters.
_FIRST_SPRITE = 1 + 94
_FIRST_SHAPE = _FIRST_SPRITE + len(SPRITES)
_FIRST_COLOR = _FIRST_SHAPE + len(COLORS) * len(SHAPES)
NUM_CLASSES = _FIRST_COLOR + len(COLORS)


def character_class(character: str) -> int:
    """Class of a printable ASCII character other than the space."""
    return ord(character) - 32


def sprite_class(sprite: int) -> int:
    """Class of a sprite."""
    return _FIRST_SPRITE + sprite


def shape_class(color: str, shape: str) -> int:
    """Class of a coloured shape."""
    return _FIRST_SHAPE + list(COLORS).index(color) * len(SHAPES) + SHAPES.index(shape)


def color_class(color: str) -> int:
    """Class of a colour."""
    return _FIRST_COLOR + list(COLORS).index(color)


def number_class(number: int) -> int:
    """Class of a small number, from 0: those up to 9 are their digits."""
    return character_class(chr(ord("0") + number))


@functools.cache
def _sheet() -> np.ndarray:
    return np.asarray(Image.open(ASSETS / "sprites.png").convert("RGBA"))


@functools.cache
def sprite_pixels(sprite: int, size: int) -> Image.Image:
    """A sprite as an RGBA image of `size` x `size` pixels."""
    row, column = divmod(sprite, COLUMNS)
    rows, columns = (slice(i * SPRITE_SIZE, (i + 1) * SPRITE_SIZE) for i in (row, column))
    image = Image.fromarray(np.ascontiguousarray(_sheet()[rows, columns]))
    return image.resize((size, size), Image.Resampling.BILINEAR)
