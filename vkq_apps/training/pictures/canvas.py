"""The canvas that every kind of picture draws on, and the result."""

import dataclasses
import functools
import math
import random
import string
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw, ImageFont

from vkq_apps.training.assets import ASSETS, FONTS
from vkq_apps.training.catalogue import character_class, known_words, sprite_class, sprite_pixels
from vkq_apps.training.pictures.backgrounds import SIZE, add_clutter, add_noise, draw_ground

__all__ = [
    "GRID",
    "NUM_FACTS",
    "NUM_SLOTS",
    "PATCH",
    "SIZE",
    "Canvas",
    "Picture",
    "Turn",
    "place_squares",
    "random_word",
    "text_width",
]

PATCH = 14
GRID = SIZE // PATCH
NUM_SLOTS, NUM_FACTS = 7, 5

type Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question about a picture, its one right answer and the task it belongs to."""

    question: str
    answer: str
    task: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and everything that is asked about it.

    Attributes:
        image: uint8 [336, 336, 3].
        turns: questions, each answerable by itself.
        labels: uint8 [576, 7], classes that the auxiliary head learns of each patch: up to two
            things centred in it, then up to five facts about the first of them, such as its
            neighbours or its row; each kind of picture has facts of its own. 0 is none.
    """

    image: np.ndarray
    turns: list[Turn]
    labels: np.ndarray


class Canvas:
    """A picture in the making: pixels, and which patch shows what."""

    def __init__(
        self,
        rng: random.Random,
        difficulty: float,
        *,
        dark_share: float = 0.25,
        clutter: int = 12,
    ):
        """A cluttered ground; `dark` says on which side of it ink has to lie."""
        self.rng = rng
        self.dark = rng.random() < dark_share
        self.image = draw_ground(rng, dark=self.dark, strength=difficulty)
        add_clutter(rng, self.image, rng.randint(0, round(difficulty * clutter)))
        self.draw = ImageDraw.Draw(self.image)
        self._labels = bytearray(GRID * GRID * NUM_SLOTS)

    def finish(self, turns: list[Turn]) -> Picture:
        """The picture, with grain."""
        labels = np.frombuffer(bytes(self._labels), np.uint8).reshape(GRID * GRID, NUM_SLOTS)
        return Picture(add_noise(self.rng, self.image), turns, labels)

    def ink(self) -> Color:
        """A random colour that stands out from the ground."""
        low, high = (200, 255) if self.dark else (0, 72)
        return self.rng.randint(low, high), self.rng.randint(low, high), self.rng.randint(low, high)

    def face(self) -> int:
        """A random font."""
        return self.rng.randrange(len(FONTS))

    def write(
        self,
        x: float,
        baseline: float,
        text: str,
        face: int,
        size: int,
        ink: Color,
        facts: Sequence[int] = (),
    ) -> None:
        """Writes text from its left end on a baseline, and labels the patch of each character."""
        font, advances = _font(face, size)
        self.draw.text((x, baseline), text, font=font, fill=ink, anchor="ls")
        for character in text:
            if character != " ":
                middle = x + advances[character] / 2
                self._label(middle, baseline - 0.36 * size, character_class(character), facts)
            x += advances[character]

    def paste_sprite(
        self, x: float, y: float, half: float, sprite: int, facts: Sequence[int] = ()
    ) -> None:
        """Draws a sprite centred on (x, y) and labels the patches that it fills."""
        size = max(6, int(2 * half) // 6 * 6)  # few sizes, so that the cache stays small
        pixels = sprite_pixels(sprite, size)
        self.image.paste(pixels, (int(x - size / 2), int(y - size / 2)), pixels)
        self.label_area(x, y, 0.62 * half, 0.62 * half, sprite_class(sprite), facts)

    def label_area(
        self,
        x: float,
        y: float,
        half_width: float,
        half_height: float,
        label: int,
        facts: Sequence[int] = (),
    ) -> None:
        """Labels every patch whose centre lies so near to (x, y) in both directions."""
        for row in _patches_within(y, half_height):
            for column in _patches_within(x, half_width):
                first = NUM_SLOTS * (row * GRID + column)
                self._labels[first] = label
                self._state_facts(first, facts)

    def _label(self, x: float, y: float, label: int, facts: Sequence[int]) -> None:
        row, column = int(y) // PATCH, int(x) // PATCH
        if 0 <= row < GRID and 0 <= column < GRID:
            first = NUM_SLOTS * (row * GRID + column)
            if not self._labels[first]:
                self._labels[first] = label
                self._state_facts(first, facts)
            elif not self._labels[first + 1]:
                self._labels[first + 1] = label

    def _state_facts(self, first: int, facts: Sequence[int]) -> None:
        start = first + NUM_SLOTS - NUM_FACTS
        self._labels[start : start + len(facts)] = bytes(facts)


def _patches_within(centre: float, half: float) -> range:
    """Rows (or columns) of patches whose middle lies within `half` of a coordinate."""
    first = math.ceil((centre - half) / PATCH - 0.5)
    last = math.floor((centre + half) / PATCH - 0.5)
    return range(max(0, first), min(GRID - 1, last) + 1)


def text_width(text: str, face: int, size: int) -> float:
    """Advance of a text in pixels."""
    advances = _font(face, size)[1]
    return sum(advances[character] for character in text)


def random_word(rng: random.Random, length: int) -> str:
    """A pronounceable lower-case word that is none of the vocabulary's, so that it is spelled."""
    while True:
        word, vowel = "", rng.random() < 0.4
        while len(word) < length:
            word += rng.choice("aeiou" if vowel else "bcdfghjklmnpqrstvwxyz")
            vowel = not vowel if rng.random() < 0.9 else vowel
        if word not in _known():
            return word


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(known_words())


@functools.cache
def _font(face: int, size: int) -> tuple[ImageFont.FreeTypeFont, dict[str, float]]:
    name = list(FONTS)[face]
    file = next(ASSETS.glob(f"{name}.[ot]tf"))
    font = ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
    printable = string.digits + string.ascii_letters + string.punctuation + " "
    return font, {character: font.getlength(character) for character in printable}


def place_squares(
    rng: random.Random, count: int, smallest: int, largest: int, margin: int = 2
) -> list[tuple[float, float, float]]:
    """Up to `count` squares that hardly overlap: centre x, centre y, half the side."""
    placed: list[tuple[float, float, float]] = []
    for _ in range(count):
        for _ in range(30):
            half = rng.uniform(smallest, largest) / 2
            low, high = half + margin, SIZE - half - margin
            x, y = rng.uniform(low, high), rng.uniform(low, high)
            if all(max(abs(x - a), abs(y - b)) > 0.94 * (half + c) for a, b, c in placed):
                placed.append((x, y, half))
                break
    return placed
