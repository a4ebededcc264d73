"""Coloured shapes to be counted."""

import math
import random

from vkq_apps.training.catalogue import COLORS, SHAPES, number_class, shape_class
from vkq_apps.training.pictures.canvas import Canvas, Picture, Turn, place_squares

__all__ = ["draw"]


def draw(rng: random.Random, difficulty: float) -> Picture:
    """Up to ten shapes out of up to four combinations of colour and form."""
    canvas = Canvas(rng, difficulty, dark_share=0.2, clutter=16)
    colors = [color for color in COLORS if not (canvas.dark and color == "black")]
    places = place_squares(rng, rng.randint(1, 5 + int(5 * difficulty)), 28, 62)
    kinds = [(rng.choice(colors), rng.choice(SHAPES)) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        kinds.append((kinds[0][0], rng.choice(SHAPES)))
    objects = [rng.choice(kinds) for _ in places]
    for (x, y, half), (color, shape) in zip(places, objects, strict=True):
        _draw_shape(canvas, x, y, half - 1, color, shape)
        reach = max(7.1, 0.75 * half)
        facts = _counts(objects, color, shape)
        canvas.label_area(x, y, reach, reach, shape_class(color, shape), facts)
    return canvas.finish(_questions(rng, objects, kinds))


def _counts(objects: list[tuple[str, str]], color: str, shape: str) -> tuple[int, ...]:
    """Facts about a shape: how many there are of all, of its form, of its colour, and of both."""
    forms, colors = [s for _, s in objects], [c for c, _ in objects]
    counts = (
        len(objects), forms.count(shape), colors.count(color), objects.count((color, shape))
    )  # fmt: skip
    return tuple(number_class(count) for count in counts)


def _draw_shape(canvas: Canvas, x: float, y: float, half: float, color: str, shape: str) -> None:
    red, green, blue = (
        min(255, max(0, level + canvas.rng.randint(-12, 12))) for level in COLORS[color]
    )
    # A rim keeps a shape apart from a ground of its own tone.
    rim = (250, 250, 250) if canvas.dark else (red // 2, green // 2, blue // 2)
    style = {"fill": (red, green, blue), "outline": rim}
    match shape:
        case "circle":
            canvas.draw.ellipse((x - half, y - half, x + half, y + half), **style)
        case "square":
            side = 0.88 * half
            canvas.draw.rectangle((x - side, y - side, x + side, y + side), **style)
        case "triangle":
            canvas.draw.polygon(
                [(x, y - half), (x - half, y + half), (x + half, y + half)], **style
            )
        case _:
            corners = []
            for k in range(10):
                reach, angle = half * (1.0 if k % 2 else 0.45), (k + 1) * math.pi / 5
                corners.append((x + reach * math.sin(angle), y + reach * math.cos(angle)))
            canvas.draw.polygon(corners, **style)


def _questions(
    rng: random.Random, objects: list[tuple[str, str]], kinds: list[tuple[str, str]]
) -> list[Turn]:
    def count(question: str, number: int) -> Turn:
        return Turn(f"how many {question} are there?", str(number), "shape_count")

    other = (rng.choice(list(COLORS)), rng.choice(SHAPES))
    turns = [count("shapes", len(objects))]
    for color, shape in dict.fromkeys([*kinds, other]):
        turns.append(count(f"{color} {shape}s", objects.count((color, shape))))
    for shape in dict.fromkeys((kinds[0][1], rng.choice(SHAPES))):
        turns.append(count(f"{shape}s", sum(s == shape for _, s in objects)))
    for color in dict.fromkeys((kinds[0][0], rng.choice(list(COLORS)))):
        turns.append(count(f"{color} shapes", sum(c == color for c, _ in objects)))
    for shape in SHAPES:
        colors = [c for c, s in objects if s == shape]
        if len(colors) == 1:
            turns.append(Turn(f"what color is the {shape}?", colors[0], "shape_color"))
    return turns
