"""The part of a tokenizer that the recipe's texts use: a few thousand tokens of many."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vkq_apps.training.pictures import choose_kind, make_picture
from vkq_apps.training.prompts import ANSWER_PREFIX, IMAGE_TOKEN, PROMPT_PREFIX, suffix

__all__ = ["recipe_texts", "used_vocabulary"]

_PICTURES, _LEAST = 2000, 2
_IMAGE_ROWS = ("<|image_pad|>", "<image_soft_token>", "<unused0>")
"""Tokens of pretrained towers that stand for nothing: one lends its row to the image token."""


def recipe_texts(pictures: int = _PICTURES) -> Iterator[str]:
    """The pieces of text, as rows of training encode them, about so many pictures."""
    rng = random.Random("vocabulary")
    yield from [PROMPT_PREFIX] * _LEAST
    for number in range(pictures):
        for turn in make_picture(choose_kind(rng), f"train/vocabulary/{number}").turns:
            yield suffix(turn.question)
            yield ANSWER_PREFIX + turn.answer


def used_vocabulary(
    content: Mapping[str, Any], texts: Iterable[str], keep: tuple[str, ...]
) -> tuple[dict[str, Any], list[int]]:
    """A byte-pair tokenizer that knows only what the texts use, and the old id of each new one.

    Tokens used less often than twice fall apart into shorter ones; single bytes and characters
    stay, so that any text of the texts' alphabet can be written. Merges keep their order: texts
    whose merges all stay are split as before. A tokenizer that has the image token already stays as it
    is.

    Args:
        content: of a tokenizer.json with a BPE model.
        texts: see `recipe_texts`.
        keep: special tokens that stay.

    Raises:
        ValueError: the tokenizer has no token that could stand for the image.
    """
    from tokenizers import Tokenizer

    model = content["model"]
    vocabulary: dict[str, int] = model["vocab"]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    image = next((name for name in (IMAGE_TOKEN, *_IMAGE_ROWS) if name in vocabulary | added), None)
    if image is None:
        raise ValueError(
            f"--text-tower: expected a tokenizer with one of {', '.join(_IMAGE_ROWS)}, whose row "
            "the image token takes"
        )
    if image == IMAGE_TOKEN:
        return dict(content), sorted({*vocabulary.values(), *added.values()})
    old = Tokenizer.from_str(json.dumps(content))
    counts = Counter(
        token for one in old.encode_batch(list(texts), add_special_tokens=False) for token in one.tokens
    )
    used = {token for token, count in counts.items() if count >= _LEAST and token in vocabulary}
    used |= {token for token in vocabulary if len(token) == 1 or token.startswith("<0x")}
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    parts: dict[str, list[tuple[str, str]]] = {}
    for pair in merges:
        parts.setdefault("".join(pair), []).append(pair)
    waiting = sorted(used)
    while waiting:
        for pair in parts.get(waiting.pop(), ()):
            waiting += [part for part in pair if part not in used]
            used |= set(pair)
    special = {name: added.get(name, vocabulary.get(name)) for name in (*keep, image)}
    ids = sorted({vocabulary[token] for token in used} | set(special.values()))
    new_id = {old_id: place for place, old_id in enumerate(ids)}
    names = {old_id: token for token, old_id in vocabulary.items()} | {
        old_id: token for token, old_id in special.items()
    }
    names[special[image]] = IMAGE_TOKEN
    reduced = copy.deepcopy(dict(content))
    reduced["model"] |= {
        "vocab": {names[old_id]: place for old_id, place in new_id.items()},
        "merges": [list(pair) for pair in merges if {*pair, "".join(pair)} <= used],
    }
    reduced["added_tokens"] = [
        {
            "id": new_id[old_id],
            "content": names[old_id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for old_id in sorted(set(special.values()))
    ]
    return reduced, ids
