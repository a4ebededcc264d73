"""One full-precision cache, coded with any preset: what makes comparing many presets cheap.

While a prompt is read its positions attend in full precision, whatever its cache is coded with
then. So the pictures are read once, with `none`, and every preset codes those keys and values.
"""

import dataclasses

import jax
import jax.numpy as jnp

import pallas_kernels
from vkq_jax.cache import KVCache, VisualBank
from vkq_jax.config import KVQuantConfig
from vkq_jax.dense import DenseTensor
from vkq_jax.presets import presets

__all__ = ["FULL_PRECISION", "code"]

FULL_PRECISION = presets["none"]


def code(cache: KVCache, quant: KVQuantConfig) -> KVCache:
    """The cache of prompts that were read with `none`, its visual tokens coded with `quant`.

    What `models.prefill` makes of the same prompts with `quant`.
    """
    banks = tuple(_code_bank(bank, quant) for bank in cache.visual)
    return dataclasses.replace(cache, visual=banks, quant=quant)


def _code_bank(bank: VisualBank, quant: KVQuantConfig) -> VisualBank:
    assert isinstance(bank.key, DenseTensor)
    assert isinstance(bank.value, DenseTensor)
    slots = jnp.arange(bank.key.values.shape[-2], dtype=jnp.int32)
    taken = slots[None] < bank.length[:, None]
    index = jnp.where(taken, slots[None], 0)

    def code_layer(pair):
        key, value = (x.transpose(0, 2, 1, 3) for x in pair)  # [B, V, K, H]
        coded = pallas_kernels.quantize_bank(key, value, index, taken, quant)
        return coded.key, coded.value

    key, value = jax.lax.map(code_layer, (bank.key.values, bank.value.values))
    return dataclasses.replace(bank, key=key, value=value)
