"""Products with a coded tensor in which the scales move out of the dot product (CalibQuant, 2.3).

Both functions follow `AffineTensor`'s equation term by term; neither forms a dequantized tensor.
Everything is float32: folding large key scales into a half-precision query overflows.
"""

import jax.numpy as jnp

from vkq_jax import groups, packed_products, rotation
from vkq_jax.array_types import Array, Float
from vkq_jax.code_tables import SideTables
from vkq_jax.dense import DenseTensor
from vkq_jax.dictionary_tensor import DictionaryTensor
from vkq_jax.exact_einsum import exact_einsum, split_einsum
from vkq_jax.mixed_codes import MixedTensor
from vkq_jax.quantized import AffineTensor, QuantizedTensor

__all__ = ["scores", "weighted_sum"]


def scores(
    query: Float[Array, "*lead Q H"], key: QuantizedTensor, tables: SideTables | None = None
) -> Float[Array, "*lead Q V"]:
    """query . key_hat[t] for every cached position t, less the score bias of coded keys.

    Dictionary codes have slots in place of positions, see `vkq_jax.token_classes`.

    Args:
        query: float32, already times `logits_scale`.
        key: coded keys of logical shape [*lead, V, H].
        tables: offline tables that the keys were coded with.
    """
    if isinstance(key := key.plain(), DictionaryTensor):
        return key.scores(query, tables)
    if isinstance(key, MixedTensor):
        wide, narrow = key.split(query)
        return scores(wide, key.wide) + scores(narrow, key.narrow)
    if isinstance(key, DenseTensor):
        return split_einsum("...qh,...vh->...qv", query, key.values)
    codes = key.decoding()
    if not codes.num_positions:  # nothing to divide into groups
        return jnp.zeros((*query.shape[:-1], 0), jnp.float32)
    square = jnp.sum(query * query, -1, keepdims=True)  # rotation leaves it alone
    if codes.rotated:
        query = rotation.rotate(query)

    runs = 1 if codes.token_scale is None else codes.token_scale.shape[-1]
    folded = query[..., :, None, :]  # [*lead, Q, G, H]: before the product with the bits
    if codes.channel_scale is not None:
        folded = folded * codes.channel_scale[..., None, :, :]
    folded = folded.reshape(*folded.shape[:-1], runs, -1)
    grouped = groups.group_positions(codes.packed, _scale_group_size(codes))
    product = packed_products.products(folded, grouped, codes.bits)
    product = product.reshape(*query.shape[:-1], -1, runs)[..., : codes.num_positions, :]

    if codes.token_scale is not None:  # per token, after the product
        product = product * codes.token_scale[..., None, :, :]
    total = product.sum(-1)
    if codes.token_offset is not None:
        query_runs = query.reshape(*query.shape[:-1], codes.token_offset.shape[-1], -1).sum(-1)
        total = total + exact_einsum("...qr,...vr->...qv", query_runs, codes.token_offset)
    if codes.channel_offset is not None:  # one dot product per group
        offset = exact_einsum("...qh,...gh->...qg", query, codes.channel_offset)
        offset = groups.per_position(offset[..., None], codes.group_size, codes.num_positions)
        total = total + offset[..., 0]
    if codes.score_error is not None:
        total = total - square * codes.score_error[..., None, :]
    return total


def weighted_sum(
    weights: Float[Array, "*lead Q V"], value: QuantizedTensor, tables: SideTables | None = None
) -> Float[Array, "*lead Q H"]:
    """sum_t weights[t] * value_hat[t]: the value side of attention; slots as in `scores`.

    Args:
        weights: float32, exactly 0 at padded positions.
        value: coded values of logical shape [*lead, V, H].
        tables: offline tables that the values were coded with.
    """
    if isinstance(value := value.plain(), DictionaryTensor):
        return value.weighted_sum(weights, tables)
    if isinstance(value, MixedTensor):
        return value.join(weighted_sum(weights, value.wide), weighted_sum(weights, value.narrow))
    if isinstance(value, DenseTensor):
        return split_einsum("...qv,...vh->...qh", weights, value.values)
    codes = value.decoding()
    if not codes.num_positions:
        return jnp.zeros((*weights.shape[:-1], codes.head_dim), jnp.float32)
    group_size = _scale_group_size(codes)

    scaled = weights[..., None]  # [*lead, Q, V, R]: the token scale is folded into the weights
    if codes.token_scale is not None:
        scaled = scaled * codes.token_scale[..., None, :, :]
    runs = scaled.shape[-1]
    scaled = groups.group_positions(scaled, group_size)  # [*lead, Q, G, s, R]
    grouped = groups.group_positions(codes.packed, group_size)
    product = packed_products.sums(scaled, grouped, codes.bits, codes.head_dim // runs)
    product = product.reshape(*product.shape[:-2], codes.head_dim)

    if codes.channel_scale is not None:  # per group, after the sum over its tokens
        product = product * codes.channel_scale[..., None, :, :]
    total = product.sum(-2)
    if codes.channel_offset is not None:
        mass = groups.group_positions(weights[..., None], codes.group_size)[..., 0].sum(
            -1
        )  # [*lead, Q, G]
        total = total + exact_einsum("...qg,...gh->...qh", mass, codes.channel_offset)
    if codes.token_offset is not None:
        offset = exact_einsum("...qv,...vr->...qr", weights, codes.token_offset)
        total = total + jnp.repeat(offset, codes.head_dim // offset.shape[-1], axis=-1)
    return rotation.unrotate(total) if codes.rotated else total


def _scale_group_size(codes: AffineTensor) -> int:
    """Positions over which one product with the bits runs: those that share a channel scale."""
    return codes.num_positions if codes.channel_scale is None else codes.group_size
