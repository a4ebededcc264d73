"""Random prompts and pictures for drawn processors, and transformers' arrays of them."""

import random
from typing import Any

import numpy as np
from PIL import Image

from tests.support.draws.prompts.served import Served
from tests.support.draws.prompts.tokenizers import BOS

__all__ = ["draw_groups", "draw_picture", "draw_prompt", "draw_text", "real_arrays"]

_WORDS = ("What", "is", " this", "?", " a 1é", "\n", " ", "red: ", "x\n\ny", "日本", "  ", "<tag>")


def draw_text(rng: random.Random) -> str:
    return rng.choice(_WORDS[:2]) + "".join(rng.choices(_WORDS, k=rng.randint(0, 5)))


def draw_picture(rng: random.Random, served: Served) -> Image.Image:
    height, width = served.sizes(rng)
    numbers = np.random.default_rng(rng.randrange(2**32))
    return Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))


def draw_groups(rng: random.Random, served: Served) -> list[list[Image.Image]]:
    counts = rng.choice(served.counts)
    return [[draw_picture(rng, served) for _ in range(count)] for count in counts]


def draw_prompt(rng: random.Random, served: Served, count: int) -> str:
    marks = [served.mark] * count
    if served.leading:
        return "".join(marks) + draw_text(rng)
    start = BOS * served.written
    parts = [f"{rng.choice(('', draw_text(rng)))}{mark}" for mark in marks]
    return start + "".join(parts) + draw_text(rng)


def real_arrays(
    real: Any, served: Served, texts: list[str], groups: list[Any], **options: Any
) -> Any:
    """transformers' arrays; levels of 8 bits as floats, which models compute with."""
    images: Any = [group for group in groups if group or served.nested == "all"]
    images = images if served.nested else [picture for group in images for picture in group]
    given = {"images": images} if any(groups) else {}
    if served.written:
        options |= {"add_special_tokens": False}
    arrays = real(text=texts, **given, padding=True, return_tensors="np", **options)
    levels = {name: x.astype(np.float32) for name, x in arrays.items() if x.dtype == np.uint8}
    return {**arrays, **levels}
