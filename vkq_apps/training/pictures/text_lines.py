"""One to four lines of random text."""

import random

from vkq_apps.training.catalogue import number_class
from vkq_apps.training.pictures.canvas import SIZE, Canvas, Picture, Turn, random_word, text_width

__all__ = ["draw"]


def draw(rng: random.Random, difficulty: float) -> Picture:
    """Lines in different fonts, sizes and inks; each is asked for, and all together."""
    canvas = Canvas(rng, difficulty)
    count = 1 if rng.random() < 0.5 else rng.randint(2, 4)
    height = SIZE // count
    turns, texts = [], []
    for line in range(count):
        text, face = random_text(rng, rng.randint(1, 3 + int(13 * difficulty))), canvas.face()
        widest = int(316 / max(1.0, text_width(text, face, 100) / 100))
        largest = min(64, height - 14, widest)
        smallest = min(largest, int(15 + 11 * (1 - difficulty)))
        size = rng.randint(smallest, largest)
        if rng.random() < 0.5:  # small print is harder and more usual
            size = min(size, rng.randint(smallest, largest))
        x = rng.randint(4, max(4, int(SIZE - 6 - text_width(text, face, size))))
        lowest = max(size + 2, height - int(0.3 * size) - 2)
        baseline = line * height + rng.randint(size + 2, lowest)
        canvas.write(x, baseline, text, face, size, canvas.ink(), (number_class(line + 1),))
        texts.append(text)
        if count == 1:
            turns.append(Turn("read the text", text, "read_one"))
        else:
            turns.append(Turn(f"read line {line + 1}", text, "read_line"))
    if count > 1:
        turns.append(Turn("read the lines", "\n".join(texts), "read_lines"))
    return canvas.finish(turns)


def random_text(rng: random.Random, length: int) -> str:
    """Words and numbers, cut to `length` characters at most."""
    text = ""
    while len(text) < length:
        size, kind = rng.randint(2, 7), rng.random()
        if kind < 0.35:
            piece = "".join(rng.choice("0123456789") for _ in range(min(size, 6)))
        else:
            piece = random_word(rng, size)
            piece = rng.choice((piece.upper(), piece.title(), piece))
        text = f"{text} {piece}" if text else piece
    return text[:length].strip()
