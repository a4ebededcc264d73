"""Questions to prompts, in the words a checkpoint was trained with."""

from collections.abc import Callable
from typing import Any

from models.checkpoints.foreign_errors import named
from models.inputs import chat_template
from models.inputs.processor import processor_of
from models.messages import show, show_path
from models.model import Model

__all__ = ["chat_prompt"]

# Stands for the answer before a later turn: the text behind it is the later turn's prompt.
_ANSWER = "the-answer-before"
_SHOWN_PART = "{'type': "


def chat_prompt(
    model: Model, question: str, *, num_images: int = 1, later_turn: bool = False
) -> str:
    """The prompt that asks `question` about `num_images` new pictures.

    Uses the checkpoint's own chat template, that of its processor or of its tokenizer; checkpoints
    without one get their family's, LLaVA-1.5's being `USER: <image>\\nquestion ASSISTANT:`.

    Args:
        model: from `models.load`.
        question: what the user says.
        num_images: pictures that come with it.
        later_turn: whether the prompt follows an answer that ended with its stop token, as that of
            `generate(..., cache=previous.cache)` does: what the template writes between that token
            and the next answer. Prepare it with `prepare(..., later_turn=True)`.

    Raises:
        FileNotFoundError: the folder lacks the processor's files.
        ValueError: the template is wrong, takes more than 5 seconds or 1 GB, or leaves out the
            question or a picture.
    """
    if not isinstance(question, str):
        raise ValueError(f"question: expected text, got {show(question)}")
    if not isinstance(num_images, int) or num_images < 0:
        raise ValueError(f"num_images: expected a number of 0 or more, got {show(num_images)}")
    processor = processor_of(model)
    subject = f"the chat template of {show_path(model.source or '')}"
    with named(subject):
        template = _template(processor)
    if template is None:
        return processor.processing.plain_prompt(processor.placeholder, question, num_images)
    with named(subject):
        return _render(model, processor, template, question, num_images, later_turn)


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
    model: Model, processor: Any, template: str, question: str, num_images: int, later_turn: bool
) -> str:
    """Renders with messages of typed parts or, for templates that take none, of plain text."""
    tokenizer, image = processor.tokenizer, processor.placeholder
    problem = None
    for content in (_parts, _plain_text(image)):
        messages = [{"role": "user", "content": content(question, num_images)}]
        if later_turn:
            earlier = [("user", "?"), ("assistant", _ANSWER)]
            messages = [
                *({"role": role, "content": content(text, 0)} for role, text in earlier),
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
            text = _without_stop_token(model, tokenizer, text)
        marks = text.count(image) - question.count(image)
        # A template of plain text writes a list of parts as Python shows it.
        shown = text.count(_SHOWN_PART) > question.count(_SHOWN_PART)
        if marks == num_images and question.strip() in text and not shown:
            return text
        problem = problem or ValueError(
            f"it makes {show(text)} of a question with {num_images} images; expected the question "
            f"and as many {image}, got {marks}: write the prompt without it"
        )
    assert problem is not None
    raise problem


def _parts(text: str, num_images: int) -> list[dict[str, str]]:
    return [*[{"type": "image"}] * num_images, {"type": "text", "text": text}]


def _plain_text(image_token: str) -> Callable[[str, int], str]:
    return lambda text, num_images: f"{image_token}\n" * num_images + text


def _without_stop_token(model: Model, tokenizer: Any, text: str) -> str:
    """The text behind an answer's stop token, which is in the cache already."""
    stops = tokenizer.convert_ids_to_tokens(list(model.config.eos_token_ids))
    for stop in filter(None, (tokenizer.eos_token, *stops)):
        before, found, after = text.partition(stop)
        if found and not before.strip():
            return after
    return text
