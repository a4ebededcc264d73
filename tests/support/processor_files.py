"""Files of tokenizers and image processors, made without PyTorch; for tests of families."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

__all__ = ["WORDS", "write_processor"]

WORDS = ("<unk>", "<s>", "</s>", "<pad>", "USER:", "ASSISTANT:", "what", "is", "this", "?", "red")
"""The first tokens of every tokenizer that is written."""


def write_processor(
    folder: Path,
    *,
    special: Sequence[str],
    image_processor: dict,
    tokenizer: dict | None = None,
    processor: dict | None = None,
    template: str | None = None,
) -> Path:
    """A tokenizer of whole words and the settings of an image processor.

    Args:
        folder: where the files go.
        special: the family's own tokens; their ids follow those of `WORDS`.
        image_processor, tokenizer, processor: content of preprocessor_config.json, further content
            of tokenizer_config.json, content of processor_config.json.
        template: the chat template.
    """
    built = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.add_special_tokens([AddedToken(word, special=True) for word in [*WORDS[:4], *special]])
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "padding_side": "left",
            **(tokenizer or {}),
        },
        "preprocessor_config.json": image_processor,
    }
    if processor is not None:
        files["processor_config.json"] = processor
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
