"""A conversation about pictures: turn by turn, each going on from the cache of the one before."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

import models
import vkq_jax
from models import Clip, GenerateOptions, Generation, Inputs, Model
from models.generation.context import context_length
from models.inputs.images import Picture
from vkq_apps.answering import stream_texts
from vkq_jax.cache.layered import AnyCache

__all__ = ["CacheSize", "Conversation", "Turn"]

_FIRST_ROOM = 512  # text tokens; doubled when they are full, so that few sizes are compiled


class CacheSize(NamedTuple):
    """Tokens in a cache, and bytes of it; text counts its whole capacity."""

    visual_tokens: int
    text_tokens: int
    visual_kv_bytes: int
    visual_kv_bytes_full_precision: int
    text_kv_bytes: int


class Turn(NamedTuple):
    """An answer.

    Attributes:
        answer: its text, without special tokens.
        finished: whether it ended with a stop token.
        stopped: whether the caller stopped it; what is neither was cut by the number of tokens.
        new_tokens: emitted tokens, stop token included.
        seconds: that the turn took.
    """

    answer: str
    finished: bool
    stopped: bool
    new_tokens: int
    seconds: float


class Conversation:
    """Asks a model one question after the other; a question that fails changes nothing.

    Attributes:
        model: that answers.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_new_tokens: int,
        num_frames: int | None = None,
        chunk: int = 2,
        **options: Unpack[GenerateOptions],
    ):
        """Starts without a turn.

        Args:
            model: from `models.load`.
            max_new_tokens: most tokens of an answer.
            num_frames: of each clip, see `models.prepare`.
            chunk: tokens after which an answer is shown.
            **options: of `models.generate` in every turn; its `key` is that of the first.
        """
        self.model = model
        self._max_new_tokens, self._num_frames, self._chunk = max_new_tokens, num_frames, chunk
        self._options = GenerateOptions(key=jax.random.key(0)) | options
        self.reset()

    def reset(self) -> None:
        """Forgets all turns."""
        self._cache: AnyCache | None = None
        self._turns, self._finished = 0, True

    @property
    def size(self) -> CacheSize:
        """Tokens and bytes of the cache; all zero before the first turn."""
        if self._cache is None:
            return CacheSize(0, 0, 0, 0, 0)
        nbytes = vkq_jax.cache_nbytes(self._cache)
        return CacheSize(
            sum(int(length[0]) for length in self._cache.visual_lengths),
            int(self._cache.text_length[0]),
            nbytes.visual,
            nbytes.visual_full_precision,
            nbytes.text,
        )

    def ask(
        self,
        question: str,
        pictures: Sequence[Picture] = (),
        clips: Sequence[Clip] = (),
        *,
        on_prompt: Callable[[Inputs], None] = lambda inputs: None,
        on_text: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Turn:
        """Answers a question, after the turns before it.

        Args:
            question: what the user says.
            pictures, clips: new ones that come with it.
            on_prompt: gets the inputs of the turn before they are read.
            on_text: gets the answer so far whenever it has grown.
            stop: asked whenever the answer has grown; True ends it there, and the conversation
                goes on from what there is of it.

        Raises:
            ValueError: the model's context is full, or what `models.prepare` and `models.generate`
                refuse. The conversation then stands where it stood.
        """
        started = time.perf_counter()
        inputs = self._prepare(question, pictures, clips)
        count = self._room_for_answer(inputs)
        on_prompt(inputs)
        options: dict[str, Any] = dict(self._options)
        options["cache_length"] = self._room(inputs, count)
        if self._cache is not None:
            # The cache has its codes, and with it come its tables.
            options |= {"quant": None, "tables": None, "cache": self._cache}
        options["key"] = jax.random.fold_in(options["key"], self._turns)
        latest: tuple[Generation, str] | None = None
        for latest in stream_texts(
            self.model, inputs, max_new_tokens=count, chunk=self._chunk, **options
        ):
            on_text(latest[1])
            if stop():
                break
        assert latest is not None
        generation, text = latest
        emitted = np.asarray(generation.tokens)[0, : int(generation.lengths[0])]
        stops = self._options.get("stop_tokens")
        stops = self.model.config.eos_token_ids if stops is None else stops
        self._cache, self._turns = generation.cache, self._turns + 1
        self._finished = int(emitted[-1]) in stops
        seconds = round(time.perf_counter() - started, 2)
        stopped = not self._finished and len(emitted) < count
        return Turn(text, self._finished, stopped, len(emitted), seconds)

    def _prepare(self, question: str, pictures: Sequence[Picture], clips: Sequence[Clip]) -> Inputs:
        later = self._cache is not None
        prompt = models.chat_prompt(
            self.model,
            question,
            num_images=len(pictures),
            num_videos=len(clips),
            later_turn=later,
            finished=self._finished,
        )
        return models.prepare(
            self.model,
            prompts=prompt,
            images=list(pictures) or None,
            videos=list(clips) or None,
            num_frames=self._num_frames if clips else None,
            later_turn=later,
        )

    def _room_for_answer(self, inputs: Inputs) -> int:
        """Most tokens of the answer: what was asked for, as far as the context goes."""
        before = 0 if self._cache is None else int(self._cache.num_tokens[0])
        prompt = inputs.prompt_shape.visual + inputs.prompt_shape.text
        longest = context_length(self.model.config)
        if before + prompt >= longest:
            raise ValueError(
                f"the conversation is full: {before} tokens so far and {prompt} of this turn, and "
                f"the model's context holds {longest}; ask for less, or start anew (/reset), "
                "without pictures that wait"
            )
        return min(self._max_new_tokens, longest - before - prompt)

    def _room(self, inputs: Inputs, new_tokens: int) -> int:
        needed = self.size.text_tokens + inputs.prompt_shape.text + new_tokens
        room = _FIRST_ROOM if self._cache is None else self._cache.cache_length
        while room < needed:
            room *= 2
        return room
