"""All that is measured of one prompt's visual KV, as one pytree."""

from functools import partial

import jax
import jax.numpy as jnp

from models import Inputs, Model
from models.attached_tables import OwnTables
from models.generation.prefill import prefill
from vkq_apps.inspection.attention import LastTokenAttention, over_cache
from vkq_apps.inspection.capture import Capture, capture
from vkq_apps.inspection.coding import code, exact_cache, what_coding_leaves
from vkq_apps.inspection.ranges import ChannelRanges
from vkq_apps.inspection.spending import error_of_tokens
from vkq_jax.array_types import Array, Float
from vkq_jax.cache.accounting import CacheBytes, cache_nbytes
from vkq_jax.codes.error_measures import QuantizationError, cosine, relative_squared_error
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.settings.layer_groups import Quant

__all__ = ["Inspection", "TensorInspection", "inspect_visual"]


@frozen_pytree
class TensorInspection:
    """Keys or values: what coding does to them.

    Attributes:
        ranges: of channels, with lead L K.
        error: for each layer and KV head.
        error_of_tokens: relative squared error of each token, over its heads and channels.
    """

    ranges: ChannelRanges
    error: QuantizationError
    error_of_tokens: Float[Array, "L V"]


@frozen_pytree
class Inspection:
    """Visual KV of one prompt before (full precision) and after coding, in layers of one kind.

    Attributes:
        layers: their numbers in the model, see `capture`.
        key, value: the coded tensors against the exact ones. Keys are without a bias that the
            cache keeps out of the codes, see `vkq_jax.KeyBias`.
        before, after: attention of the last prompt token.
        output_error: |after - before|^2 / |before|^2 of that attention's output.
        moved: share of the attention weights that lie on other tokens after than before (half the
            sum of absolute differences).
        bits: per element of each visual token, see `bits_of_tokens`.
        nbytes: of the prompt's cache, layers of all kinds, without room for an answer.
        key_bias: whether the cache keeps a bias of the keys out of the codes.
    """

    key: TensorInspection
    value: TensorInspection
    before: LastTokenAttention
    after: LastTokenAttention
    output_error: Float[Array, "L N"]
    moved: Float[Array, "L N"]
    bits: Float[Array, "L V"]
    nbytes: CacheBytes = static_field()
    key_bias: bool = static_field()
    layers: tuple[int, ...] = static_field()


def inspect_visual(
    model: Model, inputs: Inputs, quant: Quant, tables: OwnTables = None
) -> tuple[Inspection, ...]:
    """Measures one prompt, coded with `quant` and its offline tables; errors as for `capture`.

    Of each kind of layers whose visual tokens are coded.
    """
    # Bytes of the cache that generation starts from, in its layout and with its positions.
    visual = inputs.visual_mask & (not model.config.text.cross_layers)
    length = int((inputs.mask & ~visual).sum())
    fill = partial(prefill, quant=quant, cache_length=length, tables=tables)
    _, filled = jax.eval_shape(fill, model, inputs)
    return tuple(
        _inspect(model, caught, tables, quant=quant, nbytes=cache_nbytes(filled))
        for caught in capture(model, inputs)
    )


@partial(jax.jit, static_argnames=("quant", "nbytes"))
def _inspect(
    model: Model, caught: Capture, tables: OwnTables, *, quant: Quant, nbytes: CacheBytes
) -> Inspection:
    cache, text = code(model, caught, quant, tables), model.config.text
    attend = partial(
        over_cache,
        caught,
        logits_scale=text.logits_scale,
        logits_soft_cap=text.attn_logit_softcapping,
    )
    before, after = attend(exact_cache(caught)), attend(cache)
    moved = jnp.abs(after.visual - before.visual).sum(-1)
    moved = moved + jnp.abs(after.text - before.text).sum(-1)
    left = what_coding_leaves(caught, cache)
    return Inspection(
        key=_inspect_tensor(left.key, left.key_hat, left.key_ranges),
        value=_inspect_tensor(left.value, left.value_hat, left.value_ranges),
        before=before,
        after=after,
        output_error=relative_squared_error(before.output[:, :, None], after.output[:, :, None]),
        moved=moved / 2,
        bits=left.bits,
        nbytes=nbytes,
        key_bias=any(part.key_bias is not None for part in cache.parts),
        layers=caught.layers,
    )


def _inspect_tensor(
    x: Float[Array, "L K V H"], x_hat: Float[Array, "L K V H"], ranges: ChannelRanges
) -> TensorInspection:
    error = QuantizationError(relative_squared_error(x, x_hat), cosine(x, x_hat))
    return TensorInspection(ranges, error, error_of_tokens(x, x_hat))
