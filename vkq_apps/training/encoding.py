"""Text to token ids, for rows of training: the recipe's own tokenizer, or that of a checkpoint."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vkq_apps.training import tokenizer
from vkq_apps.training.prompts import PROMPT_PREFIX

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["IMAGE_TOKENS", "RECIPE", "Encoding", "encoding_of"]

IMAGE_TOKENS = 576
_LENGTH = 704
"""Positions of a row, 11 blocks of 64: prefix, image and text."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The token ids of a row of training; picklable.

    Attributes:
        prefix: ids before the image.
        pad: fills rows up.
        eos: ends an answer.
        encode: ids of text without special tokens.
    """

    prefix: tuple[int, ...]
    pad: int
    eos: int
    encode: Callable[[str], Sequence[int]]

    @property
    def text_start(self) -> int:
        """Position of the first token after the image."""
        return len(self.prefix) + IMAGE_TOKENS

    @property
    def row_length(self) -> int:
        """Text tokens of a row."""
        return _LENGTH - self.text_start


RECIPE = Encoding(
    (tokenizer.BOS, *tokenizer.encode(PROMPT_PREFIX)),
    tokenizer.PAD,
    tokenizer.EOS,
    tokenizer.encode,
)
"""The embedded model's encoding."""


def encoding_of(file: Path, *, pad: str, eos: str) -> Encoding:
    """The encoding of a tokenizer.json.

    Raises:
        ValueError: `pad` or `eos` is none of its tokens.
    """
    encode = _FileEncoder(str(file))
    prefix = encode.tokenizer.encode(PROMPT_PREFIX).ids  # with what opens a text, if anything
    ids = [encode.tokenizer.token_to_id(token) for token in (pad, eos)]
    if ids[0] is None or ids[1] is None:
        raise ValueError(f"{file}: expected the tokens {pad!r} and {eos!r}")
    return Encoding(tuple(prefix), ids[0], ids[1], encode)


@dataclasses.dataclass(frozen=True)
class _FileEncoder:
    """`encode` of a tokenizer.json, which each process reads for itself."""

    file: str

    def __call__(self, text: str) -> Sequence[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @property
    def tokenizer(self) -> "Tokenizer":
        return _read(self.file)


@functools.cache
def _read(file: str) -> "Tokenizer":
    from tokenizers import Tokenizer  # here: the recipe's own rows do without

    return Tokenizer.from_file(file)
