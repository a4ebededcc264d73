"""Bar charts: values printed or to be read off the axis, colours, extremes."""

import random

from vkq_apps.training.catalogue import COLORS, character_class, color_class, number_class
from vkq_apps.training.pictures.canvas import Canvas, Picture, Turn, text_width

__all__ = ["draw"]

_AXIS_SIZE, _NAME_SIZE, _VALUE_SIZE = 15, 18, 16


def draw(rng: random.Random, difficulty: float) -> Picture:
    """Three to six named bars over an axis of up to 10 or 20."""
    canvas = Canvas(rng, difficulty, dark_share=0.2, clutter=8)
    count = rng.randint(3, 6 if difficulty > 0.3 else 4)
    top_value = rng.choice((10, 20))
    values = _distinct_extremes(rng, count, top_value)
    ink, face = canvas.ink(), canvas.face()
    left, right = rng.randint(36, 52), rng.randint(300, 330)
    base, top = rng.randint(290, 306), rng.randint(34, 60)
    pitch, pixels = (right - left) / count, (base - top) / top_value
    step = top_value // 10 if rng.random() < 0.5 else top_value // 5
    grid = (120, 120, 120)
    for value in range(0, top_value + 1, step):
        y = base - value * pixels
        canvas.draw.line((left - 4, y, right, y), fill=grid)
        x = left - 8 - text_width(str(value), face, _AXIS_SIZE)
        canvas.write(x, y + 5, str(value), face, _AXIS_SIZE, ink)
    canvas.draw.line((left, top - 8, left, base, right, base), fill=ink, width=2)
    names = rng.sample("ABCDEFGHKLMNPRST", count)
    usable = [color for color in COLORS if not (canvas.dark and color == "black")]
    colors, printed = rng.sample(usable, count), rng.random() < 0.5
    half = pitch * rng.uniform(0.5, 0.75) / 2
    for index, (name, value, color) in enumerate(zip(names, values, colors, strict=True)):
        middle, height = left + pitch * (index + 0.5), base - value * pixels
        rim = (250, 250, 250) if canvas.dark else (40, 40, 40)
        box = (middle - half, height, middle + half, base - 1)
        canvas.draw.rectangle(box, fill=COLORS[color], outline=rim)
        # The colour is far from the name that it is asked by: without facts the model only ever
        # learned to answer with some colour of the chart.
        facts = (color_class(color), character_class(name), number_class(value))
        area = (middle, (height + base) / 2, half, (base - height) / 2)
        canvas.label_area(*area, color_class(color), facts)
        x = middle - text_width(name, face, _NAME_SIZE) / 2
        canvas.write(x, base + 20, name, face, _NAME_SIZE, ink, facts)
        if printed:
            x = middle - text_width(str(value), face, _VALUE_SIZE) / 2
            canvas.write(x, height - 4, str(value), face, _VALUE_SIZE, ink, facts)
    return canvas.finish(_questions(names, values, colors, printed=printed))


def _distinct_extremes(rng: random.Random, count: int, top_value: int) -> list[int]:
    """Values among which the highest and the lowest occur once."""
    while True:
        values = [rng.randint(1, top_value) for _ in range(count)]
        if values.count(max(values)) == values.count(min(values)) == 1:
            return values


def _questions(
    names: list[str], values: list[int], colors: list[str], *, printed: bool
) -> list[Turn]:
    task = "bar_value_printed" if printed else "bar_value_axis"
    turns = []
    for name, value, color in zip(names, values, colors, strict=True):
        turns.append(Turn(f"what is the value of bar {name}?", str(value), task))
        turns.append(Turn(f"what color is bar {name}?", color, "bar_color"))
    tallest, shortest = names[values.index(max(values))], names[values.index(min(values))]
    turns.append(Turn("which bar is tallest?", tallest, "bar_extreme"))
    turns.append(Turn("which bar is shortest?", shortest, "bar_extreme"))
    answer = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    turns.append(Turn("list the bars", answer, "bar_list"))
    return turns
