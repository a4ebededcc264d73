"""Static score calibration: a slope and shift per layer and query head, from sample prompts."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from models.attached_tables import OwnTables, find_codes
from models.calibration.observing import observe_answers
from models.generation import argument_checks as checks
from models.generation.options import QuantizeAt
from models.generation.room import check_answer_fits
from models.inputs.batch import Inputs, batches_of
from models.inputs.on_mesh import place_inputs
from models.model import Model
from models.text.coded_layers import read_layers
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.post_scaled import score_range
from vkq_jax.cache.any_cache import at_layer
from vkq_jax.messages import show
from vkq_jax.settings.layer_groups import Cells, LayerGroups, Quant, settings_of
from vkq_jax.settings.layer_settings import AnyQuant
from vkq_jax.settings.score_maps import ScoreMap, score_map
from vkq_jax.sharding.hosts import to_host
from vkq_jax.validation import check_type

__all__ = ["calibrate_scores"]


def calibrate_scores(
    model: Model,
    inputs: Inputs | Iterable[Inputs],
    *,
    quant: AnyQuant = "calibquant-1bit",
    max_new_tokens: int = 16,
    quantize_at: QuantizeAt = "prompt",
    stop_tokens: tuple[int, ...] | None = None,
) -> ScoreMap:
    """A static score map for `generate(..., score_map=...)`, from the answers to sample prompts.

    CalibQuant (arXiv 2502.14882v2) finds the lowest and highest visual score of each query and
    head, gamma and delta, at every decode step. The static form is ours: their means per layer and
    query head, over prompts and steps, give one map for good. A head whose mean scores span less
    than `tau2 - tau1` keeps them as they are (see `ScoreCalibration`), as does one whose sliding
    window shows it no visual token.

    Prompts are answered greedily, the most probable token at each step whatever the checkpoint's
    generation_config.json says, with the calibration of each step. Every query that reads coded
    visual tokens counts: the queries of the answer and, with `quantize_at="image"`, of the
    question, which is fed token by token here. Not for use inside jit.

    Args:
        model: from `models.load`.
        inputs: sample prompts, one batch or several, with images.
        quant: preset name or settings of the visual cache, or those of `vkq_jax.per_layer`, with a
            calibration. Layers and heads whose settings have none keep their scores.
        max_new_tokens: most tokens of each answer.
        quantize_at: when the visual tokens are coded, as for `generate`.
        stop_tokens: token ids that end an answer; the checkpoint's own by default.

    Returns:
        Slope and shift [L, N], float32, of scores after scale and soft-cap, in nats; and `quant`,
        for `generate` to refuse the map with other codes. L counts layers with keys of their own;
        those without visual tokens keep their scores.

    Raises:
        NotImplementedError: `quantize_at="image"` where visual tokens attend to the question.
        ValueError: an argument of a wrong type, settings without a calibration, or no visual tokens
            to calibrate with, or none that a query sees.
    """
    check_type("model", model, Model, hint="models.load")
    settings, tables = find_codes(model, quant)
    if all(own.calibration is None for own in settings_of(settings)):
        raise ValueError(f"there is no score calibration in quant={show(quant)}")
    steps = checks.check_count("max_new_tokens", max_new_tokens)
    checks.check_choice("quantize_at", quantize_at, QuantizeAt)
    checks.check_quantize_at(model, quantize_at)
    stops = checks.check_stop_tokens(model, stop_tokens)
    sums, count = jnp.float32(0.0), jnp.int32(0)
    for batch in batches_of(inputs):
        if not batch.prompt_shape.has_pictures:
            continue
        check_answer_fits(model, batch, steps, quant=settings)
        more, queries = _sum_ranges(
            model,
            place_inputs(model.mesh, batch),
            quant=settings,
            steps=steps,
            quantize_at=quantize_at,
            stop_tokens=stops,
            tables=tables,
        )
        sums, count = sums + to_host(more), count + to_host(queries)
    if not count.any():
        raise ValueError(
            "the sample prompts show their queries no visual tokens to calibrate scores with"
        )
    nothing = jnp.asarray([jnp.inf, -jnp.inf])[:, None, None]
    gamma, delta = jnp.where(count > 0, sums / jnp.maximum(count, 1).astype(jnp.float32), nothing)
    return _joined_map(settings, gamma, delta, model.config.text.num_key_value_heads)


def _joined_map(
    settings: Quant,
    gamma: Float[Array, "L N"],
    delta: Float[Array, "L N"],
    num_kv_heads: int,
) -> ScoreMap:
    """The map of all layers and heads, each by the calibration of its settings."""
    slope, shift = jnp.ones_like(gamma), jnp.zeros_like(gamma)
    every = Cells(tuple(range(len(gamma))))
    groups = settings.groups if isinstance(settings, LayerGroups) else ((every, settings),)
    for cells, own in groups:
        if own.calibration is None:
            continue
        found, _ = score_map(gamma, delta, own.calibration)
        chosen = np.zeros((len(gamma), num_kv_heads), bool)
        for place, layer in enumerate(cells.layers):
            chosen[layer, slice(None) if cells.heads is None else list(cells.heads[place])] = True
        rows = np.repeat(chosen, gamma.shape[1] // num_kv_heads, axis=1)
        slope, shift = (
            jnp.where(rows, new, old) for new, old in ((found.slope, slope), (found.shift, shift))
        )
    return ScoreMap(slope, shift, settings)


@partial(jax.jit, static_argnames=("quant", "steps", "quantize_at", "stop_tokens"))
def _sum_ranges(
    model: Model,
    inputs: Inputs,
    *,
    quant: Quant,
    steps: int,
    quantize_at: QuantizeAt,
    stop_tokens: tuple[int, ...],
    tables: OwnTables,
) -> tuple[Float[Array, "2 L N"], Int32[Array, "L N"]]:
    """Sums of gamma and delta over the queries that read coded visual tokens, and their number.

    A sliding window may hide them all from some queries, in some layers.
    """

    def observe(query, cache, layer, starts):
        def of_heads(part, place, query):
            return score_range(
                query,
                part.layer(place),
                starts=starts,
                logits_scale=model.config.text.logits_scale,
                logits_soft_cap=model.config.text.attn_logit_softcapping,
            )

        return at_layer(cache, layer, query, of_heads, axis=2)

    readers = read_layers(model.config.text)

    def add(total, seen, active):
        sums, count = total
        for name, ranges in seen.items():
            layers = jnp.asarray(readers[name].layers)
            gamma, delta = (x[:, :, 0] for x in ranges)  # [L, B, N]
            looks = active[None, :, None] & (gamma <= delta)
            found = jnp.where(looks, jnp.stack((gamma, delta)), 0.0).sum(2)
            sums = sums.at[:, layers].add(found)
            count = count.at[layers].add(looks.sum(1, dtype=jnp.int32))
        return sums, count

    heads = (model.config.text.num_own_layers, model.config.text.num_attention_heads)
    (sums, count), _ = observe_answers(
        model,
        inputs,
        quant=quant,
        steps=steps,
        quantize_at=quantize_at,
        stop_tokens=stop_tokens,
        observe=observe,
        add=add,
        tables=tables,
        start=(jnp.zeros((2, *heads), jnp.float32), jnp.zeros(heads, jnp.int32)),
    )
    return sums, count
