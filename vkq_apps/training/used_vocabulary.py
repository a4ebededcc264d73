"""The part of a tokenizer that the recipe's texts use: a few thousand tokens of many."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from vkq_apps.training.pictures import choose_kind, make_picture
from vkq_apps.training.prompts import ANSWER_PREFIX, IMAGE_TOKEN, PROMPT_PREFIX, suffix

__all__ = ["recipe_texts", "used_vocabulary"]

_PICTURES, _LEAST = 2000, 2
_CHARACTERS = {*pre_tokenizers.ByteLevel.alphabet(), "▁", "\n"}
_AS_WRITTEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
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
    whose merges all stay are split as before. A tokenizer that has the image token already stays
    as it is.

    Args:
        content: of a tokenizer.json with a BPE model.
        texts: see `recipe_texts`.
        keep: special tokens that stay, beside those that the tokenizer adds by itself.

    Raises:
        ValueError: the tokenizer has no token that could stand for the image.
    """
    model = content["model"]
    vocabulary: dict[str, int] = model["vocab"]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    known = vocabulary | added
    image = next((name for name in (IMAGE_TOKEN, *_IMAGE_ROWS) if name in known), None)
    if image is None:
        raise ValueError(
            f"--text-tower: expected a tokenizer with one of {', '.join(_IMAGE_ROWS)}, whose row "
            "the image token takes"
        )
    if image == IMAGE_TOKEN:
        return dict(content), sorted(set(known.values()))
    old = Tokenizer.from_str(json.dumps(content))
    encoded = old.encode_batch(list(texts), add_special_tokens=False)
    counts = Counter(token for one in encoded for token in one.tokens)
    used = {token for token, count in counts.items() if count >= _LEAST}
    used |= {token for token in vocabulary if token in _CHARACTERS or token.startswith("<0x")}
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    _add_parts(used, merges)
    special = {*keep, *_added_by_itself(content), image}
    if model["unk_token"] is not None:
        special.add(model["unk_token"])
    ids = sorted({known[token] for token in used | special})
    new_id = {old_id: place for place, old_id in enumerate(ids)}
    names = {known[token]: token for token in used | special} | {known[image]: IMAGE_TOKEN}
    reduced = copy.deepcopy(dict(content))
    reduced["model"] |= {
        "vocab": {names[old_id]: place for old_id, place in new_id.items()},
        "merges": [list(pair) for pair in merges if {*pair, "".join(pair)} <= used],
    }
    reduced["added_tokens"] = [
        {"id": new_id[old_id], "content": names[old_id], "special": True} | _AS_WRITTEN
        for old_id in sorted(known[token] for token in special)
    ]
    for name, token in _added_by_itself(reduced).items():
        token["ids"] = [new_id[known[name]]]
    return reduced, ids


def _add_parts(used: set[str], merges: list[tuple[str, ...]]) -> None:
    """Adds the tokens that those of `used` are merged from."""
    parts: dict[str, list[tuple[str, ...]]] = {}
    for pair in merges:
        parts.setdefault("".join(pair), []).append(pair)
    waiting = list(used)
    while waiting:
        new = {part for pair in parts.get(waiting.pop(), ()) for part in pair} - used
        used |= new
        waiting += new


def _added_by_itself(content: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens that the tokenizer puts around a text, by name."""
    return (content.get("post_processor") or {}).get("special_tokens") or {}
