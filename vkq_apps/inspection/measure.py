"""All that is measured of one prompt's visual KV, as one pytree."""

from functools import partial

import jax
import jax.numpy as jnp

from models import Inputs, Model
from models.generation.prefill import prefill
from models.text.config import TextConfig
from vkq_apps.inspection.attention import LastTokenAttention, layers_as_batch, over_cache
from vkq_apps.inspection.capture import Capture, capture
from vkq_apps.inspection.ranges import ChannelRanges, channel_ranges
from vkq_apps.inspection.spending import bits_of_tokens, error_of_tokens
from vkq_jax.accounting import CacheBytes, cache_nbytes
from vkq_jax.array_types import Array, Float
from vkq_jax.code_tables import CodeTables
from vkq_jax.config import KVQuantConfig
from vkq_jax.error_measures import QuantizationError, cosine, relative_squared_error
from vkq_jax.presets import presets
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.quantized import QuantizedTensor

__all__ = ["Inspection", "TensorInspection", "inspect_visual"]


@frozen_pytree
class TensorInspection:
    """Keys or values: what coding does to them.

    Attributes:
        ranges: of channels, with lead L K. error: for each layer and KV head.
        error_of_tokens: relative squared error of each token, over its heads and channels.
    """

    ranges: ChannelRanges
    error: QuantizationError
    error_of_tokens: Float[Array, "L V"]


@frozen_pytree
class Inspection:
    """Visual KV of one prompt before (full precision) and after coding.

    Attributes:
        key, value: the coded tensors against the exact ones.
        before, after: attention of the last prompt token.
        output_error: |after - before|^2 / |before|^2 of that attention's output.
        moved: share of the attention weights that lie on other tokens after than before (half the
            sum of absolute differences).
        bits: per element of each visual token, see `bits_of_tokens`.
        nbytes: of the prompt's cache, without room for an answer.
    """

    key: TensorInspection
    value: TensorInspection
    before: LastTokenAttention
    after: LastTokenAttention
    output_error: Float[Array, "L N"]
    moved: Float[Array, "L N"]
    bits: Float[Array, "L V"]
    nbytes: CacheBytes = static_field()


def inspect_visual(
    model: Model, inputs: Inputs, quant: KVQuantConfig, tables: CodeTables | None = None
) -> Inspection:
    """Measures one prompt, coded with `quant` and its offline tables; errors as for `capture`."""
    caught = capture(model, inputs)
    # Bytes of the cache that generation starts from, in its layout and with its positions.
    fill = partial(prefill, quant=quant, cache_length=caught.text_key.shape[2], tables=tables)
    _, filled = jax.eval_shape(fill, model, inputs)
    return _inspect(
        caught,
        tables,
        quant=quant,
        text=model.config.text,
        nbytes=cache_nbytes(filled),
    )


@partial(jax.jit, static_argnames=("quant", "text", "nbytes"))
def _inspect(
    caught: Capture,
    tables: CodeTables | None,
    *,
    quant: KVQuantConfig,
    text: TextConfig,
    nbytes: CacheBytes,
) -> Inspection:
    cache = layers_as_batch(caught, quant, tables)
    (bank,) = cache.visual
    exact = layers_as_batch(caught, presets["none"])
    before, after = (
        over_cache(
            caught,
            one,
            logits_scale=text.logits_scale,
            logits_soft_cap=text.attn_logit_softcapping,
        )
        for one in (exact, cache)
    )
    key_hat, value_hat = bank.dequantize(tables)
    moved = jnp.abs(after.visual - before.visual).sum(-1)
    moved = moved + jnp.abs(after.text - before.text).sum(-1)
    return Inspection(
        key=_inspect_tensor(caught.key, key_hat, bank.key),
        value=_inspect_tensor(caught.value, value_hat, bank.value),
        before=before,
        after=after,
        output_error=relative_squared_error(before.output[:, :, None], after.output[:, :, None]),
        moved=moved / 2,
        bits=bits_of_tokens(bank, caught.key.shape),
        nbytes=nbytes,
    )


def _inspect_tensor(
    x: Float[Array, "L K V H"], x_hat: Float[Array, "L K V H"], coded: QuantizedTensor
) -> TensorInspection:
    error = QuantizationError(relative_squared_error(x, x_hat), cosine(x, x_hat))
    return TensorInspection(channel_ranges(x, x_hat, coded), error, error_of_tokens(x, x_hat))
