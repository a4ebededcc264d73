"""Questions to prompts, in the words a checkpoint was trained with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from models.checkpoints.foreign_errors import named
from models.model import Model
from models.prompts import chat_template
from models.prompts.processor import processor_of
from models.prompts.visuals import check_takes_clips
from vkq_jax.messages import show, show_path
from vkq_jax.validation import check_type, whole_number

__all__ = ["chat_prompt"]

# Stands for the answer before a later turn: the text after it is the later turn's prompt.
_ANSWER = "the-answer-before"
_MOST = 2**16  # pictures or clips; more would fill the memory before a template is asked
_SHOWN_PART = "{'type': "


class _Asked(NamedTuple):
    """A question and how many pictures and clips come with it."""

    question: str
    images: int = 0
    videos: int = 0


def chat_prompt(
    model: Model,
    question: str,
    *,
    num_images: int = 1,
    num_videos: int = 0,
    later_turn: bool = False,
    finished: bool = True,
) -> str:
    """The prompt that asks `question` about `num_images` new pictures and `num_videos` clips.

    Uses the checkpoint's own chat template, that of its processor or of its tokenizer; checkpoints
    without one get their family's, LLaVA-1.5's being `USER: <image>\\nquestion ASSISTANT:`.

    Args:
        model: from `models.load`.
        question: what the user says.
        num_images, num_videos: pictures and clips that come with it, clips after pictures.
        later_turn: whether the prompt follows an answer, as that of
            `generate(..., cache=previous.cache)` does: what the template writes between its stop
            token and the next answer. Prepare it with `prepare(..., later_turn=True)`.
        finished: whether that answer ended with its stop token. A prompt after one that was cut
            begins with what the template writes at the end of an answer.

    Raises:
        FileNotFoundError: the folder lacks the processor's files.
        NotImplementedError: clips for a model that takes pictures alone.
        ValueError: the template is wrong, takes more than 5 seconds or 1 GB, or leaves out the
            question or a picture.
    """
    if not isinstance(question, str):
        raise ValueError(f"question: expected text, got {show(question)}")
    for name, number in (("num_images", num_images), ("num_videos", num_videos)):
        count = whole_number(number)
        if count is None or not 0 <= count <= _MOST:
            raise ValueError(
                f"{name}: expected a number of 0 or more, {_MOST} at most, got {show(number)}"
            )
    check_type("later_turn", later_turn, (bool, np.bool))
    check_type("finished", finished, (bool, np.bool))
    if not (finished or later_turn):
        raise ValueError(
            "finished=False is of the answer before a later turn: give later_turn=True"
        )
    processor = processor_of(model)
    if num_videos:
        check_takes_clips(model.config)
    asked = _Asked(question, num_images, num_videos)
    subject = f"the chat template of {show_path(model.source or '')}"
    with named(subject):
        template = _template(processor)
        if num_videos and processor.clips is not None:
            template = processor.clips.chat_template or template
    if template is None:
        clips = f"{processor.clip_text}\n" * num_videos
        end = "" if finished else processor.tokenizer.eos_token or ""
        return end + processor.processing.plain_prompt(
            processor.placeholder, clips + question, num_images
        )
    with named(subject):
        return _render(model, processor, template, asked, later_turn, finished)


def _template(processor: Any) -> str | None:
    """The processor's template before the tokenizer's, as transformers prefers; None: neither."""
    template = processor.chat_template
    if template is None:
        template = getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, dict):
        if "default" not in template:
            raise ValueError(f'expected one named "default" of several, got {show(template)}')
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise ValueError(f"expected text, got {show(template)}")
    return template


def _render(
    model: Model, processor: Any, template: str, asked: _Asked, later_turn: bool, finished: bool
) -> str:
    """Renders with messages of typed parts or, for templates that take none, of plain text."""
    tokenizer, question = processor.tokenizer, asked.question
    image, clip = processor.placeholder, processor.clip_placeholder
    problem = None
    for content in (_parts, _plain_text(image, clip)):
        messages = [{"role": "user", "content": content(asked)}]
        if later_turn:
            earlier = [("user", "?"), ("assistant", _ANSWER)]
            messages = [
                *({"role": role, "content": content(_Asked(text))} for role, text in earlier),
                *messages,
            ]
        try:
            text = chat_template.render(template, messages, tokenizer.special_tokens_map)
        except ValueError as error:
            problem = problem or error
            continue
        if later_turn:
            _, found, text = text.partition(_ANSWER)
            if not found:
                problem = problem or ValueError("it leaves out earlier answers")
                continue
            text = _without_stop_token(model, tokenizer, text) if finished else text
        marks = text.count(image) - question.count(image)
        clips = text.count(clip) - question.count(clip)
        # A template of plain text writes a list of parts as Python shows it.
        shown = text.count(_SHOWN_PART) > question.count(_SHOWN_PART)
        wanted = (asked.images, asked.videos)
        if (marks, clips * bool(asked.videos)) == wanted and question.strip() in text and not shown:
            return text
        of_clips = f", {asked.videos} videos and as many {clip}, got {clips}" * bool(asked.videos)
        problem = problem or ValueError(
            f"it makes {show(text)} of a question with {asked.images} images; expected the "
            f"question and as many {image}, got {marks}{of_clips}: write the prompt without it"
        )
    assert problem is not None
    raise problem


def _parts(asked: _Asked) -> list[dict[str, str]]:
    return [
        *[{"type": "image"}] * asked.images,
        *[{"type": "video"}] * asked.videos,
        {"type": "text", "text": asked.question},
    ]


def _plain_text(image_token: str, clip_token: str) -> Callable[[_Asked], str]:
    return lambda asked: (
        f"{image_token}\n" * asked.images + f"{clip_token}\n" * asked.videos + asked.question
    )


def _without_stop_token(model: Model, tokenizer: Any, text: str) -> str:
    """The text after an answer's stop token, which is in the cache already."""
    stops = tokenizer.convert_ids_to_tokens(list(model.config.eos_token_ids))
    for stop in filter(None, (tokenizer.eos_token, *stops)):
        before, found, after = text.partition(stop)
        if found and not before.strip():
            return after
    return text
