"""Random tokenizers whose tokens are bytes, as GPT-2's, or letters, as Llama's."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

__all__ = ["BOS", "EOS", "PAD", "write_tokenizer"]

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_LETTERS = [chr(n) for n in range(33, 127)] + ["▁", "é", "\n"]


def write_tokenizer(
    rng: random.Random,
    folder: Path,
    special: dict[str, int],
    settings: dict[str, Any],
    *,
    bos: bool = False,
) -> None:
    """tokenizer.json and tokenizer_config.json.

    Args:
        rng: draws the kind of tokenizer, and ids of what `special` leaves.
        folder: where the files go.
        special: ids of special tokens, those of `PAD`, `BOS` and `EOS` among them.
        settings: further content of tokenizer_config.json.
        bos: whether there has to be a BOS token.
    """
    of_bytes = rng.random() < 0.6
    units = sorted(pre_tokenizers.ByteLevel.alphabet())
    if not of_bytes:
        units = _LETTERS + [f"<0x{n:02X}>" for n in range(256)]
    units = [unit for unit in units if unit not in special]
    free = sorted(set(range(len(units) + len(special) + 60)) - set(special.values()))
    vocabulary = special | dict(zip(units, rng.sample(free, len(units)), strict=True))
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=not of_bytes))
    if of_bytes:
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
    else:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        built.normalizer = normalizers.Sequence(steps if rng.random() < 0.5 else steps[1:])
        built.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    normalized = of_bytes and rng.random() < 0.2
    built.add_special_tokens(
        [AddedToken(text, special=True, normalized=normalized) for text in special]
    )
    has_bos = bos or not of_bytes or rng.random() < 0.5
    if has_bos and rng.random() < 0.8:
        built.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, special[BOS])]
        )
    built.save(str(folder / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": rng.choice((PAD, PAD, EOS)),
        "padding_side": rng.choice(("left", "left", "right")),
        "clean_up_tokenization_spaces": False,
        **({"bos_token": BOS} if has_bos else {}),
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
