"""Scenes of emoji: what is there, how often, where, and next to what."""

import random
from collections import Counter

from vkq_apps.training.catalogue import SPRITE_PLURALS, SPRITES, number_class, sprite_class
from vkq_apps.training.pictures.canvas import SIZE, Canvas, Picture, Turn, place_squares

__all__ = ["draw"]

# Nearer than this, "left of" or "the middle" is a matter of opinion.
_GAP, _MARGIN = 48, 24
_THIRD = SIZE / 3
_DIRECTIONS = (("left of", "right of"), ("above", "below"))


def draw(rng: random.Random, difficulty: float) -> Picture:
    """Up to seven sprites of up to four kinds."""
    canvas = Canvas(rng, difficulty, dark_share=0.3, clutter=20)
    kinds = rng.sample(range(len(SPRITES)), rng.randint(1, 4))
    extra = rng.choice((0, 0, 0, 1, 1, 2, 3) if difficulty > 0.3 else (0, 0, 1))
    objects = kinds + [rng.choice(kinds) for _ in range(extra)]
    places = place_squares(rng, len(objects), 44, 108)
    objects = objects[: len(places)]
    counts, centres = Counter(objects), [(x, y) for x, y, _ in places]
    neighbors = _neighbors(objects, centres)
    for (x, y, half), sprite, around in zip(places, objects, neighbors, strict=True):
        canvas.paste_sprite(x, y, half, sprite, _facts(counts[sprite], around))
    turns = [
        Turn("describe the picture", _caption(counts), "caption"),
        *_counting(rng, counts),
        *_relations(objects, centres, counts, neighbors),
    ]
    return canvas.finish(turns)


def _caption(counts: Counter[int]) -> str:
    """`2 cats, 1 dog`: in alphabetic order, so that there is one right answer."""
    parts = sorted((SPRITES[sprite], sprite) for sprite in counts)
    return ", ".join(
        f"{counts[sprite]} {name if counts[sprite] == 1 else SPRITE_PLURALS[sprite]}"
        for name, sprite in parts
    )


def _counting(rng: random.Random, counts: Counter[int]) -> list[Turn]:
    present, other = rng.choice(list(counts)), rng.randrange(len(SPRITES))
    turns = [
        Turn(f"how many {SPRITE_PLURALS[sprite]} are there?", str(counts[sprite]), "sprite_count")
        for sprite in (present, other)
    ]
    asked = rng.choice((rng.choice(list(counts)), rng.randrange(len(SPRITES))))
    article = "an" if SPRITES[asked][0] in "aeou" else "a"
    answer = "yes" if counts[asked] else "no"
    turns.append(Turn(f"is there {article} {SPRITES[asked]}?", answer, "presence"))
    return turns


def _facts(count: int, around: dict[str, int]) -> tuple[int, ...]:
    """How many there are of a sprite, and what is left, right, above and below it."""
    beside = (
        sprite_class(around[direction]) if direction in around else 0
        for pair in _DIRECTIONS
        for direction in pair
    )  # fmt: skip
    return (number_class(count), *beside)


def _neighbors(objects: list[int], centres: list[tuple[float, float]]) -> list[dict[str, int]]:
    """The neighbour of each object in each direction, by `_DIRECTIONS`, where it is clear."""
    neighbors: list[dict[str, int]] = [{} for _ in objects]
    for axis, (before, after) in enumerate(_DIRECTIONS):
        order = sorted(range(len(objects)), key=lambda index: centres[index][axis])
        at = [centres[index][axis] for index in order]
        for k in range(len(order) - 1):
            if at[k + 1] - at[k] < _GAP:
                continue
            if k == 0 or at[k] - at[k - 1] >= _GAP:
                neighbors[order[k + 1]][before] = objects[order[k]]
            if k + 2 == len(order) or at[k + 2] - at[k + 1] >= _GAP:
                neighbors[order[k]][after] = objects[order[k + 1]]
    return neighbors


def _relations(
    objects: list[int],
    centres: list[tuple[float, float]],
    counts: Counter[int],
    neighbors: list[dict[str, int]],
) -> list[Turn]:
    turns = []
    for sprite, around in zip(objects, neighbors, strict=True):
        if counts[sprite] == 1:
            for direction, other in around.items():
                question = f"what is {direction} the {SPRITES[sprite]}?"
                turns.append(Turn(question, SPRITES[other], "position"))
    for sprite, (x, y) in zip(objects, centres, strict=True):
        if counts[sprite] == 1 and _is_clear(x) and _is_clear(y):
            row = ("top", "middle", "bottom")[int(y // _THIRD)]
            column = ("left", "center", "right")[int(x // _THIRD)]
            turns.append(Turn(f"where is the {SPRITES[sprite]}?", f"{row} {column}", "place"))
    return turns


def _is_clear(value: float) -> bool:
    """Whether a coordinate is far from the lines that divide the picture in three."""
    return min(abs(value - _THIRD), abs(value - 2 * _THIRD)) >= _MARGIN
