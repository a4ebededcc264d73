"""The tokenizer: known words are one token each, everything else is spelled by character.

It is a byte-free BPE without merges (`ignore_merges`): a piece of text that is in the vocabulary is
that token, any other falls apart into characters. Pieces are lines, "?" and "," by themselves, and
words with the space before them, written "▁". Nothing is normalized, so text of printable ASCII
comes back exactly.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from vkq_apps.training.catalogue import ADDED_WORDS, known_words
from vkq_apps.training.prompts import CHAT_TEMPLATE, IMAGE_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["BOS", "EOS", "IMAGE", "PAD", "build_tokenizer", "encode", "vocab_size", "vocabulary"]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", IMAGE_TOKEN)
PAD, BOS, EOS, UNKNOWN, IMAGE = range(5)
_SPACE = "▁"
_FIRST_WORDS = ("describe", "how", "is", "read", "what", "where", "which")
"""Words that may open a line, and so have no space before them; "list" is one more."""


@functools.cache
def vocabulary() -> dict[str, int]:
    """Token ids; unused ones fill up to a multiple of 16."""
    characters = [*(chr(code) for code in range(33, 127)), "\n", _SPACE]
    words = [*_FIRST_WORDS, "USER:", _SPACE + "ASSISTANT:"]
    words += [_SPACE + word for word in known_words() if len(word) > 1 and word not in ADDED_WORDS]
    words += [word if word == "list" else _SPACE + word for word in ADDED_WORDS]
    tokens = [*_SPECIAL, *characters, *words]
    tokens += [f"<unused{index}>" for index in range(-len(tokens) % 16)]
    assert len(set(tokens)) == len(tokens)
    return {token: index for index, token in enumerate(tokens)}


def vocab_size() -> int:
    """Number of token ids."""
    return len(vocabulary())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it; `save_pretrained` writes its files."""
    # Here and not above: rendering processes only encode, and this import takes seconds.
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary(), merges=[], unk_token="<unk>", ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\n?,]"), "isolated"),
            pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


_PIECES = re.compile(rf"[\n?,]|{_SPACE}[^\n?,{_SPACE}]*|[^\n?,{_SPACE}]+")


def encode(text: str) -> list[int]:
    """Token ids of text without special tokens: what the tokenizer gives, many times as fast."""
    ids: list[int] = []
    for piece in _PIECES.findall(text.replace(" ", _SPACE)):
        ids.extend(_encode_piece(piece))
    return ids


@functools.lru_cache(maxsize=4096)
def _encode_piece(piece: str) -> tuple[int, ...]:
    known = vocabulary()
    if piece in known:
        return (known[piece],)
    return tuple(known.get(character, UNKNOWN) for character in piece)
