"""A model of lmms-eval (EvolvingLMMs-Lab/lmms-eval), by the interface of its "simple" models.

    lmms-eval --model vkq_jax --model_args pretrained=FOLDER,quant=vkq-1bit --tasks pope

lmms-eval finds `manifest` by an entry point. It imports PyTorch for itself; nothing here does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]

import models
import vkq_jax
from models import Clip, Sampling
from models.attached_tables import find_codes
from models.generation.options import QuantizeAt
from models.generation.teacher_forcing import EvaluatedModel
from vkq_apps.evals.batches import Batch, prepare, whole_inputs
from vkq_apps.evals.metrics.text import EXACT
from vkq_apps.evals.samples import Sample
from vkq_apps.evals.tasks import Task
from vkq_apps.terminal.codes_option import parse_codes
from vkq_apps.terminal.implementation import implementation_of, layers_apart_with

__all__ = ["VkqJax", "manifest"]

_ANSWER_TOKENS, _CHOICE_TOKENS = 128, 64
_QUESTION = Task("lmms-eval", lambda count, seed: [], EXACT, max_new_tokens=_CHOICE_TOKENS)


def manifest() -> Any:
    """The model's name, for lmms-eval's registry."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest("vkq_jax", simple_class_path=f"{__name__}.{VkqJax.__name__}")


class VkqJax(lmms):
    """A checkpoint with its visual cache in codes; pictures and clips go before the question."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        quant: str = "vkq-1bit",
        quantize_at: QuantizeAt = "image",
        tables: str | None = None,
        implementation: str = "auto",
        batch_size: int | str | None = 1,
        **others: Any,
    ):
        """Loads the model.

        Args:
            pretrained: folder of the checkpoint, or "tiny".
            quant, quantize_at, tables, implementation: as for `vkq eval`, without its suffixes.
            batch_size: requests answered at once.
            others: what lmms-eval gives every model, `device` and `max_batch_size`.

        Raises:
            ValueError: an unknown option, or one that is not as expected.
        """
        super().__init__()
        if unknown := sorted(set(others) - {"device", "max_batch_size"}):
            raise ValueError(f"model_args: vkq_jax knows no option {unknown[0]!r}")
        if not str(batch_size).isdigit() or not int(str(batch_size)):
            raise ValueError(f"batch_size: expected a whole number above 0, got {batch_size!r}")
        if quantize_at not in ("prompt", "image"):
            raise ValueError(f"quantize_at: expected prompt or image, got {quantize_at!r}")
        self.batch_size = int(str(batch_size))
        chosen = implementation_of(implementation)
        codes, given = parse_codes(quant), None if tables is None else vkq_jax.load_tables(tables)
        model = models.load(pretrained, layers_apart=layers_apart_with(chosen))
        self._evaluated = EvaluatedModel(model, chosen)
        self._quant, self._tables = find_codes(model, codes, given)
        self._quantize_at: QuantizeAt = quantize_at
        self._generate = partial(
            models.generate,
            model,
            quant=codes,
            tables=given,
            implementation=chosen,
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, each up to the first of its request's `until` texts."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        for places in groups.values():
            for some in _split(places, self.batch_size):
                rows = [requests[place].args for place in some]
                samples = [self._sample(context, *rest) for context, _, *rest in rows]
                texts = self._answer(samples, options=rows[0][1])
                for place, row, text in zip(some, rows, texts, strict=True):
                    answers[place] = text
                    self.cache_hook.add_partial("generate_until", row[:2], text)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The loss of each continuation (mean over its tokens, in nats), and whether it is greedy.

        lmms-eval takes the choice of the least loss, though its interface says log-likelihood.
        """
        found: list[tuple[float, bool]] = []
        for some in _split(range(len(requests)), self.batch_size):
            samples = []
            for place in some:
                context, target, *rest = requests[place].args
                text = target if isinstance(target, str) else target(self._doc(*rest[1:]))
                samples.append(self._sample(context, *rest, choices=(text,)))
            found += self._score(samples)
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raises NotImplementedError."""
        raise NotImplementedError("vkq_jax: tasks of several rounds are not supported")

    def _doc(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _sample(
        self,
        context: str,
        doc_to_visual: Any,
        number: int,
        task: str,
        split: str,
        choices: tuple[str, ...] = (),
    ) -> Sample:
        """A request as `vkq eval` has it."""
        visuals = list(doc_to_visual(self._doc(number, task, split)) or ())
        clips = tuple(Clip(visual) for visual in visuals if isinstance(visual, str))
        pictures = [visual for visual in visuals if not isinstance(visual, str)]
        return Sample(
            key=f"{task}/{split}/{number}",
            picture=f"{task}/{split}/{number}",
            load=lambda: pictures,
            question=context.replace("<image>", "").strip(),
            answers=choices,
            choices=choices,
            num_pictures=len(pictures),
            clips=clips,
        )

    def _answer(self, samples: Sequence[Sample], options: dict[str, Any]) -> list[str]:
        if options.get("num_beams") not in (None, 1):
            raise ValueError(f"num_beams: expected 1, got {options['num_beams']}")
        temperature = options.get("temperature") or 0.0
        drawn = bool(options.get("do_sample", temperature > 0)) and temperature > 0
        model, filled = self._evaluated.model, _filled(samples, self.batch_size)
        seen = all(one.num_pictures or one.clips for one in filled)
        generation = self._generate(
            whole_inputs(model, _QUESTION, filled),
            quantize_at=self._quantize_at if seen else "prompt",
            max_new_tokens=int(options.get("max_new_tokens", _ANSWER_TOKENS)),
            sampling=Sampling(
                temperature=temperature if drawn else 0.0,
                top_p=options.get("top_p") if drawn else None,
                top_k=options.get("top_k") if drawn else None,
            ),
            key=jax.random.key(0) if drawn else None,
        )
        texts = models.decode(model, generation.tokens, generation.lengths)
        until = options.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            texts = [text.partition(stop)[0] if stop else text for text in texts]
        return [text.strip() for text in texts[: len(samples)]]

    def _score(self, samples: Sequence[Sample]) -> list[tuple[float, bool]]:
        filled = _filled(samples, self.batch_size)
        rows = tuple((place, one.choices[0]) for place, one in enumerate(filled))
        model = self._evaluated.model
        batch = Batch(_QUESTION, tuple(filled), rows)
        prepared = prepare(model, batch, steps=_CHOICE_TOKENS, quantize_at=self._quantize_at)
        reading = prepared.read(self._evaluated, steps=_CHOICE_TOKENS)
        prompted = self._evaluated.read_coded(
            reading, self._tables, quant=self._quant, quantize_at=self._quantize_at
        )
        assert prepared.choices is not None
        tokens, lengths = prepared.choices
        kept = self._evaluated.follow(prompted, tokens, lengths).kept
        chosen = np.asarray(jnp.take_along_axis(kept, tokens[..., None], axis=-1)[..., 0])
        greedy = np.asarray(kept.argmax(-1) == tokens)
        return [
            (float(-chosen[row, :length].mean()), bool(greedy[row, :length].all()))
            for row, length in enumerate(np.asarray(lengths)[: len(samples)])
        ]


def _split(places: Sequence[int], size: int) -> list[Sequence[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _filled(samples: Sequence[Sample], size: int) -> list[Sample]:
    """Copies of the first one at the end: batches of one size are compiled once."""
    return [*samples, *[samples[0]] * (size - len(samples))]
