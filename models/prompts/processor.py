"""A checkpoint's own processor: its tokenizer, image preprocessing and chat template."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from models.checkpoints.foreign_errors import named
from models.checkpoints.hf_settings import errors_of, read_json
from models.families.base import ModelConfig
from models.families.registry import family_of
from models.inputs.clip_processing import ClipProcessing
from models.inputs.from_transformers import from_transformers
from models.inputs.processing import Processing
from models.model import Model
from vkq_jax.files.regular_file import open_regular
from vkq_jax.messages import show, show_path
from vkq_jax.validation import check_type, check_untraced

__all__ = ["Processor", "decode", "processor_of"]

_NEEDED = (
    ("tokenizer.json", "tokenizer.model"),
    ("preprocessor_config.json", "processor_config.json"),
)
_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)


@dataclasses.dataclass
class Processor:
    """The parts that turn prompts and pictures into arrays.

    Attributes:
        tokenizer, image_processor: transformers' own.
        processing: the family's part of the work.
        chat_template: of the processor's files, before the tokenizer's own; None without one.
        placeholder: the text of a prompt that stands for one picture.
        picture_text: what `<image>` becomes in a prompt.
        clips: the family's processing of clips; None where it has none.
        clip_placeholder, clip_text: as those of pictures, of one clip and `<video>`.
    """

    tokenizer: Any
    image_processor: Any
    processing: Processing
    chat_template: Any
    placeholder: str
    picture_text: str
    clips: ClipProcessing | None = None
    clip_placeholder: str = ClipProcessing.mark
    clip_text: str = ClipProcessing.mark

    def with_placeholders(self, prompt: str) -> str:
        """A prompt with the texts of pictures and clips in place of `<image>` and `<video>`."""
        marks = [(self.processing.image_mark, self.picture_text)]
        if self.clips is not None:
            marks.append((self.clips.mark, self.clip_text))
        for mark, text in marks:
            prompt = prompt if mark in text else prompt.replace(mark, text)
        return prompt

    def places_visuals(self, prompt: str, *, clips: bool) -> bool:
        """Whether a prompt says itself where its pictures go, or where its clips do."""
        marks = [self.processing.image_mark, self.placeholder]
        if clips and self.clips is not None:
            marks += [self.clips.mark, self.clip_placeholder]
        return any(mark in prompt for mark in marks)


def decode(model: Model, tokens: ArrayLike, lengths: ArrayLike | None = None) -> list[str]:
    """Text of generated tokens, special tokens left out.

    Args:
        model: from `models.load`.
        tokens: integers [B, T], or [T] of one sequence.
        lengths: how many tokens of each sequence count, [B]; all by default.

    Returns:
        One string for each sequence.

    Raises:
        ValueError: a wrong shape or dtype, tokens outside the vocabulary, or lengths outside
            [0, T].
    """
    check_type("model", model, Model, hint="models.load")
    if dataclasses.is_dataclass(tokens):  # a whole answer, of which only two parts are text
        raise ValueError(
            f"tokens: expected integers [B, T], got {show(tokens)}: give its tokens and lengths, "
            "decode(model, generation.tokens, generation.lengths)"
        )
    check_untraced("tokens", tokens)
    with named("tokens: cannot be read as an array"):
        rows = np.atleast_2d(np.asarray(tokens))
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"tokens: expected integers [B, T], got {rows.dtype} {rows.shape}")
    width = rows.shape[1]
    with named("lengths: cannot be read as an array"):
        given = np.full(len(rows), width) if lengths is None else np.asarray(lengths)
    counts = np.atleast_1d(given)
    if counts.shape != (len(rows),):
        raise ValueError(f"lengths: expected shape ({len(rows)},), got {counts.shape}")
    if not np.issubdtype(counts.dtype, np.integer) or ((counts < 0) | (counts > width)).any():
        raise ValueError(f"lengths: expected integers in [0, {width}], got {show(counts.tolist())}")
    vocabulary = max(model.config.text.vocab_size, *(i + 1 for i in model.config.visual_token_ids))
    outside = rows[(rows < 0) | (rows >= vocabulary)]
    if outside.size:
        raise ValueError(f"tokens: expected ids in [0, {vocabulary}), got {outside[0]}")
    kept = [row[:count].tolist() for row, count in zip(rows, counts, strict=True)]
    tokenizer = processor_of(model).tokenizer
    with named("cannot decode tokens"):
        return tokenizer.batch_decode(kept, skip_special_tokens=True)


def processor_of(model: Model) -> Processor:
    """The processor of a loaded model; made once for each state of a folder's files.

    Raises:
        FileNotFoundError: the folder lacks the processor's files.
        ValueError: the model comes from no folder, the files are broken, or do not fit the model.
    """
    check_type("model", model, Model, hint="models.load")
    if model.source is None:
        raise ValueError("the model was not loaded from a folder, so it has no processor")
    folder = Path(model.source)
    return _load(folder, model.config, _state_of(folder))


def _state_of(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """The folder's files but weights, so that a mended template is another state."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(".safetensors"):
                with contextlib.suppress(OSError):  # a link to nowhere
                    stat = entry.stat()
                    found.append((entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return frozenset(found)


@functools.lru_cache(maxsize=8)
def _load(folder: Path, config: ModelConfig, state: frozenset[Any]) -> Processor:
    del state
    missing = [
        " or ".join(names)
        for names in _NEEDED
        if not any((folder / name).is_file() for name in names)
    ]
    if missing:
        raise FileNotFoundError(
            f"processor files missing in {show_path(folder)}: {', '.join(missing)}"
        )
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{show_path(folder)}: expected a folder whose name is text in UTF-8, which the "
            "tokenizer's library needs: rename it"
        ) from error
    # transformers would take the last of two fields of a name, and fail on others without a word
    # of which file it is.
    for file in (folder / name for name in _SETTINGS):
        if file.is_file():
            read_json(file)
    processing = family_of(config.model_type).processing()
    subject = f"cannot read the processor in {show_path(folder)}"
    with _broken_tokenizer_first(folder), named(subject):
        tokenizer = from_transformers("AutoTokenizer").from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer("")  # some settings of a wrong type show only when it runs
        image_processor = processing.load_image_processor(folder, config)
        processing.check(config, image_processor)
        settings = _processor_settings(folder)
        _check_image_token(settings, tokenizer, config, processing.image_token_setting)
        clips = processing.clips(config)
        of_clips = (
            {}
            if clips is None
            else {
                "clips": clips,
                "clip_placeholder": clips.placeholder(config, tokenizer),
                "clip_text": clips.clip_text(config, tokenizer),
            }
        )
        return Processor(
            tokenizer=tokenizer,
            image_processor=image_processor,
            processing=processing,
            chat_template=_chat_template(folder, settings),
            placeholder=processing.placeholder(config, tokenizer),
            picture_text=processing.picture_text(config, tokenizer),
            **of_clips,
        )


@contextlib.contextmanager
def _broken_tokenizer_first(folder: Path) -> Iterator[None]:
    """Names tokenizer.json in place of an error of transformers, where it holds no JSON object."""
    try:
        yield
    except ValueError:
        file = folder / "tokenizer.json"  # of tens of megabytes: not read twice for nothing
        if file.is_file():
            read_json(file)
        raise


def _processor_settings(folder: Path) -> dict[str, Any]:
    file = folder / "processor_config.json"
    return read_json(file) if file.is_file() else {}


def _chat_template(folder: Path, settings: dict[str, Any]) -> Any:
    """The template of the processor's files, of transformers 5 or 4; None: the tokenizer's own."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        with errors_of(file), open_regular(file) as stream:
            return stream.read().decode("utf-8-sig")  # a byte order mark is no part of a prompt
    file = folder / "chat_template.json"
    if file.is_file():
        return read_json(file).get("chat_template")
    return settings.get("chat_template")


def _check_image_token(
    settings: dict[str, Any], tokenizer: Any, config: ModelConfig, name: str
) -> None:
    """Checks that files of the processor and of the model mean the same image token."""
    token = settings.get(name) or getattr(tokenizer, name, None)
    if token is None:
        return
    found = tokenizer.convert_tokens_to_ids(token)
    if found != config.image_token_id:
        raise ValueError(
            f"the image token {show(token)} is {show(found)} in the tokenizer, and "
            f"{config.image_token_id} in config.json"
        )
