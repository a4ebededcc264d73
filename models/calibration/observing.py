"""Sample prompts answered greedily, with a look at each query that reads coded visual tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.attached_tables import OwnTables
from models.generation.decode_step import observed_step
from models.generation.options import QuantizeAt
from models.generation.prefill import prefill
from models.inputs.batch import Inputs
from models.inputs.split import split_after_images
from models.model import Model
from vkq_jax.array_types import Array, Bool
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.settings.layer_groups import Quant

__all__ = ["observe_answers"]


def observe_answers[T](
    model: Model,
    inputs: Inputs,
    *,
    quant: Quant,
    steps: int,
    quantize_at: QuantizeAt,
    stop_tokens: tuple[int, ...],
    observe: Callable[[Array, AnyCache, Array, Starts | None], Any],
    add: Callable[[T, Any, Bool[Array, "B"]], T],
    start: T,
    tables: OwnTables = None,
    implementation: str | None = None,
) -> tuple[T, AnyCache]:
    """Adds up what is observed over the queries of the answers, to be traced.

    With `quantize_at="image"` the queries of the question count, too; the question is fed token by
    token.

    Args:
        model, inputs: the model and the prompts that it answers.
        quant: codes of the visual cache.
        steps: most tokens of an answer.
        quantize_at: when the visual tokens are coded, as for `generate`.
        stop_tokens: ids that end an answer.
        observe: see `models.generation.decode_step.observed_step`; gives arrays, stacked over
            layers.
        add: `(sum, observed, active) -> sum`, where active says whose token was fed.
        start: the sum before any.
        tables: offline tables of the codes.
        implementation: of attention over the cache and of coding, as for `prefill`.

    Returns:
        The sum, and the cache at the end.
    """
    images, question = inputs, None
    if quantize_at == "image":
        images, question = split_after_images(inputs)
    length = inputs.prompt_shape.text + steps
    logits, cache = prefill(
        model,
        images,
        quant=quant,
        cache_length=length,
        tables=tables,
        implementation=implementation,
    )
    fixed = cache.fixed()  # beside the carry: they never change
    stops = jnp.asarray(stop_tokens, jnp.int32)

    def feed(carry, token, active):
        logits, cache, total = carry
        cache = cache.with_fixed(fixed)
        after, cache, seen = observed_step(
            model, token, cache, active, observe=observe, implementation=implementation
        )
        logits = jnp.where(active[:, None], after, logits)
        return logits, cache.without_fixed(), add(total, seen, active)

    def read(carry, item):
        return feed(carry, *item), None

    def answer(carry, _):
        carry, done = carry
        token = jnp.argmax(carry[0], axis=-1).astype(jnp.int32)
        carry = feed(carry, token, ~done)
        return (carry, done | jnp.isin(token, stops)), None

    carry = (logits, cache.without_fixed(), start)
    if question is not None:
        carry, _ = jax.lax.scan(read, carry, (question.input_ids.T, question.mask.T))
    (carry, _), _ = jax.lax.scan(answer, (carry, jnp.zeros(len(logits), bool)), length=steps)
    _, cache, total = carry
    return total, cache.with_fixed(fixed)
