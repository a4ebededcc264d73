"""The tokens that end and pad prompts and answers, from generation_config.json and config.json."""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from models.checkpoints.hf_fields import TokenIds, token_ids
from models.checkpoints.hf_settings import Between, Settings, errors_of, read_json
from models.families.base import ModelConfig
from vkq_jax.messages import show, show_path

__all__ = ["with_special_tokens"]


def with_special_tokens(
    config: ModelConfig, folder: Path, content: Mapping[str, Any]
) -> ModelConfig:
    """The configuration with the stop tokens and the padding tokens of a checkpoint.

    Args:
        config: with the stop tokens of config.json.
        folder: the checkpoint's.
        content: the object in config.json.

    Warns:
        UserWarning: a generation_config.json without eos_token_id, or stop tokens beyond the
            vocabulary.

    Raises:
        ValueError: ids of a wrong type or outside their range.
    """
    with errors_of(folder / "config.json"):
        text = content.get("text_config")
        outer = _Padding.read(content).pad_token_id
        inner = _Padding.read(text if isinstance(text, dict) else {}, "text_config").pad_token_id
    padding, stops = (outer, inner), config.eos_token_ids
    file = folder / "generation_config.json"
    if file.is_file():
        settings = read_json(file)
        with errors_of(file):
            padding = (_Padding.read(settings).pad_token_id, *padding)
            own = token_ids(_Stops.read(settings).eos_token_id)
        if stops and not own:
            warnings.warn(
                f"{show_path(file)} has no eos_token_id: that of config.json ends answers, "
                f"{show(stops)}, where transformers goes on to the greatest length",
                stacklevel=4,
            )
        stops = own or stops
    vocabulary = config.text.vocab_size
    if never := [token for token in stops if token >= vocabulary]:
        warnings.warn(
            f"{show_path(folder)}: eos_token_id {show(never)} lies beyond the vocabulary of "
            f"{vocabulary} tokens and ends no answer",
            stacklevel=4,
        )
    found = next((token_ids(each) for each in padding if each is not None), ())
    return dataclasses.replace(config, eos_token_ids=stops, pad_token_ids=found)


@dataclasses.dataclass(frozen=True)
class _Stops(Settings):
    eos_token_id: TokenIds | None = None


# Files of the first LLaMA models say -1 for none.
_PadTokenId = Annotated[int, Between(-1, 2**31 - 1)]


@dataclasses.dataclass(frozen=True)
class _Padding(Settings):
    pad_token_id: _PadTokenId | tuple[_PadTokenId, ...] | None = None
