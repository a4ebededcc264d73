"""Tables: named columns over numbered rows, read by row, by column and by cell."""

import random

from vkq_apps.training.catalogue import FIELDS, number_class
from vkq_apps.training.pictures.canvas import SIZE, Canvas, Picture, Turn, text_width
from vkq_apps.training.pictures.documents import random_value

__all__ = ["draw"]

_NAMES = [name for name, kind in FIELDS.items() if kind in ("money", "number", "word", "time")]
"""Columns whose values are short enough to stand side by side."""


def draw(rng: random.Random, difficulty: float) -> Picture:
    """Two or three columns of two to four values, with or without rules."""
    canvas = Canvas(rng, difficulty, dark_share=0.15, clutter=8)
    names = rng.sample(_NAMES, rng.randint(2, 3 if difficulty > 0.3 else 2))
    count = rng.randint(2, 4 if difficulty > 0.3 else 3)
    rows = [[random_value(rng, FIELDS[name]) for name in names] for _ in range(count)]
    upper = rng.random() < 0.4
    head = [name.upper() if upper else name.title() for name in names]
    _write_table(canvas, [head, *rows])
    return canvas.finish(_questions(rng, names, rows))


def _write_table(canvas: Canvas, cells: list[list[str]]) -> None:
    """Writes rows of cells, the head first, in columns as wide as their widest cell."""
    rng = canvas.rng
    head_face, face, ink, size = canvas.face(), canvas.face(), canvas.ink(), rng.randint(15, 21)

    def width(row: int, column: int) -> float:
        return text_width(cells[row][column], face if row else head_face, size)

    columns = range(len(cells[0]))
    while True:
        widths = [max(width(row, column) for row in range(len(cells))) for column in columns]
        spare = SIZE - 16 - sum(widths) - 16 * (len(widths) - 1)
        if spare >= 0 or size <= 12:
            break
        size -= 1
    gap = 16 + rng.uniform(0, max(0.0, min(spare / len(widths), 60)))
    table_width = sum(widths) + gap * (len(widths) - 1)
    left = rng.uniform(8, max(8.0, SIZE - 8 - table_width))
    pitch = rng.randint(size + 11, min(58, (SIZE - 24) // len(cells)))
    top = rng.randint(size + 4, max(size + 4, SIZE - 8 - pitch * (len(cells) - 1)))
    right_aligned = [rng.random() < 0.4 for _ in columns]
    rules = rng.randrange(3)
    for row, texts in enumerate(cells):
        x, baseline = left, top + row * pitch
        for column, text in enumerate(texts):
            start = x + (widths[column] - width(row, column) if right_aligned[column] else 0)
            facts = (number_class(row), number_class(column + 1))
            canvas.write(start, baseline, text, face if row else head_face, size, ink, facts)
            x += widths[column] + gap
        if rules == 2 or (rules == 1 and row == 0):
            y = baseline + 0.5 * (pitch - 0.6 * size)
            canvas.draw.line((left - 4, y, left + table_width + 4, y), fill=ink)


def _questions(rng: random.Random, names: list[str], rows: list[list[str]]) -> list[Turn]:
    """Two rows, two columns and two cells, in random order: not all fit into a row of training."""
    turns = [
        Turn(f"read row {number + 1}", ", ".join(rows[number]), "table_row")
        for number in rng.sample(range(len(rows)), 2)
    ]
    for column in rng.sample(range(len(names)), 2):
        answer = ", ".join(row[column] for row in rows)
        turns.append(Turn(f"read the {names[column]} column", answer, "table_column"))
    cells = [(row, column) for row in range(len(rows)) for column in range(len(names))]
    for row, column in rng.sample(cells, 2):
        question = f"what is the {names[column]} in row {row + 1}?"
        turns.append(Turn(question, rows[row][column], "table_cell"))
    rng.shuffle(turns)
    return turns
