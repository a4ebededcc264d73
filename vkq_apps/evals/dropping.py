"""Token dropping: a few visual tokens in full precision instead of all tokens in few bits.

The tokens that stay are those of the largest attention, summed over the queries of the prompt, each
KV head of each layer by itself (H2O, arXiv 2306.14048; VL-Cache, arXiv 2410.23317). Keys and values
are dropped; a recurrent state keeps what it has of the pictures.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from models.generation.teacher_forcing import EvaluatedModel, Prompted, Reading
from models.inputs.batch import Inputs
from models.layers.attention import dense_attention
from models.model import Model
from models.text.coded_layers import coded_layers, read_layers
from models.text.masks import prompt_masks
from vkq_jax.array_types import Array, Float
from vkq_jax.attention.soft_cap import soft_cap
from vkq_jax.cache.any_cache import map_parts
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.updates import take_sequences
from vkq_jax.cache.visual import left_pack
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.sharding.bank_parts import join_banks
from vkq_jax.slots import filled

__all__ = ["attention_mass", "keep_tokens", "read_kept"]


@jax.jit
def attention_mass(model: Model, inputs: Inputs) -> tuple[Float[Array, "L B K V"], ...]:
    """Attention that each visual token gets from all queries of its prompt, in full precision.

    Returns:
        For each kind of layers, see `coded_layers`, the mass of their tokens in the order of the
        prompt, as in its visual bank; 0 where there is none. Queries of layers that read the keys
        of another one count there.

    Raises:
        NotImplementedError: a model whose pictures lie in cross-attention layers.
    """
    module = model.module()
    text = model.config.text
    if text.cross_layers:
        raise NotImplementedError(
            "token dropping: expected visual tokens beside the text, got a "
            f"{model.config.model_type} model, whose cross-attention layers tell pictures apart by "
            "numbers that all heads share, so that heads cannot keep different tokens"
        )
    mask_of = prompt_masks(text, inputs)
    index, taken = left_pack(inputs.visual_mask & inputs.mask, inputs.prompt_shape.visual)

    def attend(layer, query, key, value, carry):
        mask = mask_of(layer)
        cap = text.attn_logit_softcapping
        output = dense_attention(
            query, key, value, mask, logits_scale=text.logits_scale, logits_soft_cap=cap
        )
        q = query.reshape(*query.shape[:2], key.shape[2], -1, key.shape[3])
        scores = jnp.einsum("btkmh,bskh->bkmts", q, key, preferred_element_type=jnp.float32)
        scores = soft_cap(scores * text.logits_scale, cap)
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1)
        seen = jnp.where(inputs.mask[:, None, None, :, None], weights, 0.0).sum((2, 3))
        mass = jnp.take_along_axis(seen, index[:, None], axis=-1)
        return output, carry, jnp.where(taken[:, None], mass, 0.0)

    _, _, seen = module.read(inputs, attend)
    mass = [
        jnp.zeros((len(kind.layers), len(index), kind.num_kv_heads, index.shape[1]))
        for kind in coded_layers(text)
    ]
    for name, read in read_layers(text).items():
        mass[read.kind] = mass[read.kind].at[jnp.asarray(read.rows)].add(seen[name])
    return tuple(mass)


def keep_tokens(
    cache: AnyCache,
    mass: Sequence[Float[Array, "L B K V"]],
    share: float,
    window: int | None = None,
) -> AnyCache:
    """The cache of prompts read with `none`, with that share of each sequence's visual tokens.

    Args:
        cache: of the prompts.
        mass: from `attention_mass`.
        share: of the tokens that stay.
        window: tokens that the model's sliding window shows, if it has one.

    Raises:
        NotImplementedError: the window hides tokens, so it has to know the position of each.
    """
    slots = mass[0].shape[-1] + cache.cache_length
    if cache.keeps_indices and (window is None or window < slots):
        raise NotImplementedError(
            f"token dropping needs a sliding window that shows all of the {slots} slots of a "
            f"prompt and its answer, got one of {window}"
        )
    left = iter(mass)
    return map_parts(cache, lambda part: _keep_of_part(part, next(left), share))


def _keep_of_part(cache: KVCache, mass: Float[Array, "L B K V"], share: float) -> KVCache:
    (bank,) = join_banks(cache).visual
    assert isinstance(bank.key, DenseTensor)
    assert isinstance(bank.value, DenseTensor)
    valid = filled(bank.length, mass.shape[-1])
    most = max(1, round(share * mass.shape[-1]))
    _, kept = jax.lax.top_k(jnp.where(valid[:, None], mass, -1.0), most)

    def take(tensor: DenseTensor) -> DenseTensor:
        return DenseTensor(jnp.take_along_axis(tensor.values, kept[..., None], axis=-2))

    few = jnp.round(share * bank.length).astype(jnp.int32)
    length = jnp.clip(few, jnp.minimum(bank.length, 1), most)
    # No number matters to a window that shows all tokens.
    index = None if bank.index is None else bank.index[:, :most]
    few_tokens = VisualBank(take(bank.key), take(bank.value), length, index=index)
    return dataclasses.replace(cache, visual=(few_tokens,))


@partial(jax.jit, static_argnames="share")
def read_kept(
    evaluated: EvaluatedModel, reading: Reading, pictures: Inputs, *, share: float
) -> Prompted:
    """The rows of `reading`, whose questions see that share of the visual tokens."""
    assert reading.question is not None, "tokens are dropped before a question apart from them"
    model = evaluated.model
    mass = attention_mass(model, pictures)
    cache = keep_tokens(reading.pictures, mass, share, model.config.text.sliding_window)
    cache = take_sequences(cache, reading.owner)
    return evaluated.read_question(reading.question, cache)
