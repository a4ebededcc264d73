"""Backgrounds with texture, so that few visual tokens are plain, and marks that mean nothing.

Light grounds stay above 130 and dark ones below 105 in every channel, ink on the other side: what
is asked about stays legible.
"""

import functools
import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

__all__ = ["NOISE_LEVELS", "SIZE", "add_clutter", "add_noise", "draw_ground"]

SIZE = 336
_PAGE = 448  # grounds are cut out of larger pages
_LIGHT, _DARK = (132, 255), (0, 104)
_PAGES_PER_TONE = 36
_GREY = 128
NOISE_LEVELS = (3.0, 6.0, 10.0, 14.0)


def draw_ground(rng: random.Random, *, dark: bool, strength: float) -> Image.Image:
    """A random cut-out of a cached page, or a mixture of two; `strength` 0 to 1 is its contrast."""
    ground = _cut(rng, dark)
    if rng.random() < 0.35:
        ground = Image.blend(ground, _cut(rng, dark), rng.uniform(0.25, 0.75))
    if strength < 1:
        plain = Image.new("RGB", (SIZE, SIZE), _pixel(ground, rng.randrange(SIZE), SIZE // 2))
        ground = Image.blend(plain, ground, strength)
    return ground


def add_clutter(rng: random.Random, image: Image.Image, amount: int) -> None:
    """Draws faint lines, arcs, dots and outlines in tones near those of the ground."""
    draw = ImageDraw.Draw(image)
    for _ in range(amount):
        x, y = rng.randrange(SIZE), rng.randrange(SIZE)
        shift = rng.choice((-1, 1)) * rng.randint(14, 42)
        r, g, b = _pixel(image, x, y)
        tone = (_near(r, shift), _near(g, shift), _near(b, shift))
        reach, width = rng.randint(8, 120), rng.randint(1, 3)
        angle = rng.uniform(0, 2 * math.pi)
        box = (x - reach, y - reach, x + reach, y + reach)
        match rng.randrange(5):
            case 0 | 1:
                end = (x + 2 * reach * math.cos(angle), y + 2 * reach * math.sin(angle))
                draw.line((x, y, *end), fill=tone, width=width)
            case 2:
                start = math.degrees(angle)
                draw.arc(box, start, start + rng.randint(40, 300), fill=tone, width=width)
            case 3:
                for _ in range(rng.randint(3, 9)):
                    u, v = x + rng.randint(-40, 40), y + rng.randint(-40, 40)
                    draw.ellipse((u - width, v - width, u + width, v + width), fill=tone)
            case _:
                corners = [
                    (x + reach * math.cos(angle + k * 1.3), y + reach * math.sin(angle + k * 1.3))
                    for k in range(4)
                ]
                draw.polygon(corners, outline=tone)


def add_noise(rng: random.Random, image: Image.Image) -> np.ndarray:
    """The picture as uint8 [SIZE, SIZE, 3], in three of four cases with the grain of a sensor."""
    if rng.random() < 0.75:
        page = _noise()[rng.randrange(len(NOISE_LEVELS))]
        left, top = rng.randrange(_PAGE - SIZE), rng.randrange(_PAGE - SIZE)
        grain = page.crop((left, top, left + SIZE, top + SIZE))
        image = ImageChops.add(image, grain, 1, -_GREY)
    return np.array(image)


def _near(level: int, shift: int) -> int:
    return min(255, max(0, level + shift))


def _pixel(image: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def _cut(rng: random.Random, dark: bool) -> Image.Image:
    page = _pages(dark)[rng.randrange(_PAGES_PER_TONE)]
    left, top = rng.randrange(_PAGE - SIZE), rng.randrange(_PAGE - SIZE)
    cut = page.crop((left, top, left + SIZE, top + SIZE))
    turn = rng.randrange(14)
    return cut.transpose(Image.Transpose(turn)) if turn < 7 else cut


@functools.cache
def _noise() -> list[Image.Image]:
    """Grey grain around `_GREY`, one page a level."""
    unit = np.random.default_rng(7).standard_normal((_PAGE, _PAGE, 1))
    return [
        Image.fromarray(np.clip(_GREY + level * unit.repeat(3, -1), 0, 255).astype(np.uint8))
        for level in NOISE_LEVELS
    ]


@functools.cache
def _pages(dark: bool) -> list[Image.Image]:
    rng = np.random.default_rng(1 + dark)
    low, high = _DARK if dark else _LIGHT
    # Textures below are in [0, 1] per channel or mixtures of two tones.
    pages = []
    for index in range(_PAGES_PER_TONE):
        texture = _TEXTURES[index % len(_TEXTURES)](rng)
        first, second = rng.integers(low, high, (2, 3))
        if index % 3 == 0:  # every third page has the full range of its tone
            first, second = np.full(3, low), np.full(3, high)
        pixels = first + (second - first) * texture
        pages.append(Image.fromarray(np.clip(pixels, low, high).astype(np.uint8)))
    return pages


def _gradient(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid(rng)
    return ((x - x.min()) / (np.ptp(x)) + 0.15 * np.sin(y / 30))[..., None]


def _stripes(rng: np.random.Generator) -> np.ndarray:
    x, _ = _grid(rng)
    return (np.floor(x / rng.integers(6, 40)) % 2)[..., None] * 0.8


def _checks(rng: np.random.Generator) -> np.ndarray:
    (x, y), side = _grid(rng), rng.integers(10, 48)
    return ((np.floor(x / side) + np.floor(y / side)) % 2)[..., None] * 0.8


def _waves(rng: np.random.Generator) -> np.ndarray:
    total = np.zeros((_PAGE, _PAGE))
    for _ in range(4):
        x, y = _grid(rng)
        total += np.sin(x / rng.uniform(4, 40) + rng.uniform(0, 3) * np.sin(y / 50))
    return 0.5 + total[..., None] / 8


def _blobs(rng: np.random.Generator) -> np.ndarray:
    return _resized(rng.random((rng.integers(5, 14), rng.integers(5, 14), 3)))


def _clouds(rng: np.random.Generator) -> np.ndarray:
    octaves = [_resized(rng.random((4 * 2**k, 4 * 2**k, 3))) / 2**k for k in range(1, 7)]
    total = np.sum(octaves, axis=0)
    return (total - total.min()) / np.ptp(total)


def _mosaic(rng: np.random.Generator) -> np.ndarray:
    cells = rng.random((60, 2)) * _PAGE
    tones = rng.random((60, 3))
    y, x = np.mgrid[:_PAGE, :_PAGE].astype(np.float32)
    distance = (y[..., None] - cells[:, 0]) ** 2 + (x[..., None] - cells[:, 1]) ** 2
    return tones[distance.argmin(-1)]


def _grain(rng: np.random.Generator) -> np.ndarray:
    return 0.5 + 0.25 * rng.standard_normal((_PAGE, _PAGE, 1)) * _resized(rng.random((6, 6, 1)))


_TEXTURES = (_clouds, _gradient, _stripes, _blobs, _waves, _checks, _mosaic, _grain)


def _grid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [page, page] along a random direction and across it."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:_PAGE, :_PAGE].astype(np.float64)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _resized(grid: np.ndarray) -> np.ndarray:
    channels = [
        Image.fromarray(grid[..., c].astype(np.float32)).resize((_PAGE, _PAGE), _BICUBIC)
        for c in range(grid.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


_BICUBIC = Image.Resampling.BICUBIC
