"""A drawn model with the files of its processor, and transformers' own processor of them."""

import copy
import dataclasses
import inspect
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.draws.prompts.tokenizers import BOS, EOS, PAD, write_tokenizer
from tests.support.real_processor import real_processor

__all__ = ["Served", "any_size", "served_processor", "write_files"]

type Sizes = Callable[[random.Random], tuple[int, int]]
_VOCABULARY = 500
COUNTS = ((0, 1, 2), (2, 0), (1,), (0, 0), (3, 0, 1), (1, 1), (0, 2, 0, 1))


def any_size(rng: random.Random) -> tuple[int, int]:
    """Height and width of a picture."""
    return rng.choice((1, 5, 17, 30)) + rng.randint(0, 12), rng.choice((3, 9, 28)) + rng.randint(
        0, 9
    )


@dataclasses.dataclass(frozen=True)
class Served:
    """A config.json, and what its processor's files hold.

    Attributes:
        content: of config.json.
        processor: the name of transformers' class.
        images: content of preprocessor_config.json.
        special: ids of special tokens, by their texts; None: any.
        mark: the text of a prompt that stands for a picture.
        options: content of processor_config.json.
        names: those by which the tokenizer knows tokens.
        sizes: draws the height and width of a picture.
        nested: whether the processor wants a list of pictures for each prompt; "all": for prompts
            without pictures, too.
        leading: whether pictures stand before all text.
        counts: numbers of pictures of a batch's prompts, of which one is drawn.
        bos: whether the processor fails without a BOS token.
        written: whether prompts are written with their BOS: the processor adds a second one.
    """

    content: dict[str, Any]
    processor: str
    images: dict[str, Any]
    special: dict[str, int | None]
    mark: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    sizes: Sizes = any_size
    nested: bool | str = False
    leading: bool = False
    counts: tuple[tuple[int, ...], ...] = COUNTS
    bos: bool = False
    written: bool = False

    def with_vocabulary(self) -> "Served":
        """The same with room for a tokenizer's bytes in the vocabulary."""
        content = copy.deepcopy(self.content)
        text = content["text_config"]
        before, text["vocab_size"] = text["vocab_size"], _VOCABULARY
        if "vocab_size_per_layer_input" in text:
            text["vocab_size_per_layer_input"] = _VOCABULARY
        for token, number in self.special.items():
            if (number or 0) >= before:  # Mllama's, which only the embedding knows
                name = "image_token_index"
                content[name] = self.special[token] = _VOCABULARY + (number or 0) - before
        return dataclasses.replace(self, content=content)


def write_files(rng: random.Random, folder: Path, served: Served, template: str | None) -> None:
    """The processor's files, beside config.json and weights."""
    text = served.content["text_config"]
    eos = text.get("eos_token_id", 2)
    special = {PAD: 0, BOS: 1, EOS: eos[0] if isinstance(eos, list) else eos}
    if special[EOS] == special[BOS]:
        special[BOS] = 2
    taken = {*special.values(), *served.special.values()}
    free = iter(sorted(set(range(100, 400)) - taken))
    own = {token: next(free) if n is None else n for token, n in served.special.items()}
    settings: dict[str, Any] = {"extra_special_tokens": served.names}
    files: dict[str, Any] = {"preprocessor_config.json": served.images}
    nested = rng.random() < 0.3  # as transformers 5 saves a processor
    if nested or served.options or rng.random() < 0.5:
        files["processor_config.json"] = {"processor_class": served.processor, **served.options}
    if nested:
        files["processor_config.json"]["image_processor"] = files.pop("preprocessor_config.json")
    if template is not None:
        match rng.randrange(5):
            case 0:
                files.setdefault("processor_config.json", {})["chat_template"] = template
            case 1:
                files["chat_template.json"] = {"chat_template": template}
            case 2:
                settings["chat_template"] = template
            case _:
                (folder / "chat_template.jinja").write_text(template)
    write_tokenizer(rng, folder, special | own, settings, bos=served.bos)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def served_processor(folder: Path, served: Served, template: str | None) -> Any:
    """transformers' processor of these files, without parts that need torch."""
    theirs = _class_of(served.processor)
    wanted = inspect.signature(theirs.__init__).parameters
    missing = {name: None for name in ("video_processor", "feature_extractor") if name in wanted}
    return real_processor(folder, theirs, chat_template=template, **missing, **served.options)


def _class_of(name: str) -> Any:
    import transformers

    if name == "PixtralProcessor":
        # It imports torchvision for a function that is not called.
        from transformers.models.pixtral import image_processing_pil_pixtral as on_pil

        sys.modules.setdefault("transformers.models.pixtral.image_processing_pixtral", on_pil)
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor

        return PixtralProcessor
    return getattr(transformers, name)
