"""Receipts and forms: labelled fields whose values are asked for."""

import random

from vkq_apps.training.catalogue import FIELDS, SPRITES
from vkq_apps.training.pictures.canvas import SIZE, Canvas, Picture, Turn, random_word, text_width

__all__ = ["draw", "random_value"]


def draw(rng: random.Random, difficulty: float) -> Picture:
    """A title, four to eight fields in one of three layouts, and marks that mean nothing."""
    canvas = Canvas(rng, difficulty, dark_share=0.15)
    ink = canvas.ink()
    y = _draw_head(canvas, ink)
    count = rng.randint(4, 6 if difficulty < 0.5 else 8)
    pitch = min(rng.randint(26, 44), (SIZE - 8 - y) // count)
    label_face, value_face = canvas.face(), canvas.face()
    size = rng.randint(15, 21)
    value_size = max(15, size + rng.randint(-1, 1))
    upper = rng.random() < 0.4
    left, column, layout = rng.randint(6, 24), rng.randint(120, 150), rng.randrange(3)
    fields = rng.sample(list(FIELDS), count)
    turns = []
    for field in fields:
        y += pitch
        value = random_value(rng, FIELDS[field])
        label = (field.upper() if upper else field.title()) + ":"
        label_end = left + text_width(label, label_face, size)
        width = text_width(value, value_face, value_size)
        x = (column, SIZE - 10 - width, label_end + 10)[layout]
        x = max(label_end + 6, min(x, SIZE - 4 - width))
        canvas.write(left, y - 4, label, label_face, size, ink)
        canvas.write(x, y - 4, value, value_face, value_size, ink)
        if layout == 2 and pitch > 27:
            canvas.draw.rectangle((left - 3, y - value_size - 5, 330, y + 3), outline=ink)
        elif layout == 1 and x - label_end > 24:
            for dot in range(int(label_end) + 8, int(x) - 8, 6):
                canvas.draw.point((dot, y - 4), fill=ink)
        turns.append(Turn(f"what is the {field}?", value, "document_field"))
    if SIZE - y > 40:
        _draw_barcode(canvas, y + 12, ink)
    turns.append(Turn("list the fields", ", ".join(fields), "field_list"))
    return canvas.finish(turns)


def _draw_head(canvas: Canvas, ink: tuple[int, int, int]) -> int:
    """Title, sometimes a rule and a logo; returns where the fields may begin."""
    rng = canvas.rng
    title = rng.choice(
        ("RECEIPT", "INVOICE", "FORM", "TICKET", random_word(rng, 6).upper() + " SHOP",
         random_word(rng, 5).title() + " Store")
    )  # fmt: skip
    y = rng.randint(26, 40)
    face, size = canvas.face(), rng.randint(20, 26)
    x = rng.randint(8, 80)
    canvas.write(x, y, title, face, size, ink)
    if rng.random() < 0.4 and x + text_width(title, face, size) < 280:
        canvas.paste_sprite(SIZE - 28, 26, rng.randint(16, 22), rng.randrange(len(SPRITES)))
    y += rng.randint(6, 12)
    if rng.random() < 0.5:
        canvas.draw.line((8, y, 328, y), fill=ink)
    return y


def _draw_barcode(canvas: Canvas, top: int, ink: tuple[int, int, int]) -> None:
    rng = canvas.rng
    if rng.random() < 0.5:
        return
    x, bottom = rng.randint(10, 120), min(SIZE - 6, top + rng.randint(16, 40))
    for _ in range(rng.randint(20, 40)):
        width = rng.randint(1, 3)
        canvas.draw.rectangle((x, top, x + width - 1, bottom), fill=ink)
        x += width + rng.randint(1, 4)


def random_value(rng: random.Random, kind: str) -> str:
    """A value of a kind that `catalogue.FIELDS` names."""
    match kind:
        case "money":
            whole = rng.choice((rng.randint(0, 9), rng.randint(10, 99), rng.randint(100, 999)))
            return f"${whole}.{rng.randint(0, 99):02d}"
        case "date":
            separator = rng.choice("/-")
            day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2000, 2039)
            return f"{day:02d}{separator}{month:02d}{separator}{year}"
        case "time":
            return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        case "phone":
            return f"{rng.randint(100, 999)}-{rng.randint(0, 9999):04d}"
        case "number":
            low, high = rng.choice(((1, 99), (100, 9999), (10000, 99999)))
            return str(rng.randint(low, high))
        case "word":
            return random_word(rng, rng.randint(3, 8)).title()
        case "name":
            first, last = rng.randint(2, 5), rng.randint(3, 6)
            return f"{random_word(rng, first).title()} {random_word(rng, last).title()}"
        case _:
            raise ValueError(f"unknown kind of value: {kind!r}")
