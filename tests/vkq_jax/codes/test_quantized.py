"""The decoding contract against its equation, element by element."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from vkq_jax.array_types import Array, Float, Int8
from vkq_jax.attention import post_scaled as attention
from vkq_jax.attention import reference
from vkq_jax.bits import packing
from vkq_jax.bits.rotation import hadamard
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor, Quantizer
from vkq_jax.pytree import frozen_pytree

V, H, GROUP_SIZE, BITS = 5, 8, 2, 2
TABLES = {
    "channel_offset": (3, H),
    "channel_scale": (3, H),
    "token_offset": (V, 2),
    "token_scale": (V, 2),
}


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("absent", [(), *((name,) for name in TABLES), tuple(TABLES)])
def test_dequantize_is_the_equation(absent, rotated):
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, (V, H))
    tables = {k: rng.normal(size=s).astype(np.float32) for k, s in TABLES.items()}
    tables = {k: table for k, table in tables.items() if k not in absent}
    tensor = AffineTensor(
        packed=packing.pack(jnp.asarray(code, jnp.uint32), BITS),
        **{k: jnp.asarray(table) for k, table in tables.items()},
        bits=BITS,
        head_dim=H,
        group_size=GROUP_SIZE,
        rotated=rotated,
    )

    def entry(name, t, i, default):
        row, column = (t // GROUP_SIZE, i) if name.startswith("channel") else (t, i // (H // 2))
        return tables[name][row, column] if name in tables else default

    expected = np.empty((V, H))
    for t in range(V):
        for i in range(H):
            scale = entry("channel_scale", t, i, 1) * entry("token_scale", t, i, 1)
            offset = entry("channel_offset", t, i, 0) + entry("token_offset", t, i, 0)
            expected[t, i] = offset + scale * code[t, i]
    if rotated:
        expected = expected @ hadamard(H)
    np.testing.assert_allclose(tensor.dequantize(), expected, rtol=1e-5, atol=1e-5)
    assert tensor.decoding() is tensor


@dataclasses.dataclass(frozen=True)
class Cubes(Quantizer):
    """Codes of one's own whose levels are not affine: cubes of whole numbers."""

    def quantize(self, x, valid):
        root = jnp.round(jnp.cbrt(jnp.where(valid[..., None], x, 0).astype(jnp.float32) * 8))
        return CubeTensor(root.astype(jnp.int8))


@frozen_pytree
class CubeTensor(QuantizedTensor):
    """x_hat = packed ** 3 / 8"""

    packed: Int8[Array, "*lead V H"]

    def decoding(self):
        raise NotImplementedError("cubes are not affine")

    def dequantize(self) -> Float[Array, "*lead V H"]:
        return self.packed.astype(jnp.float32) ** 3 / 8

    def scores(self, query, tables=None):
        return query @ jnp.swapaxes(self.dequantize(), -1, -2)

    def weighted_sum(self, weights, tables=None):
        return weights @ self.dequantize()


def test_a_cache_attends_to_a_tensor_of_ones_own_that_is_not_affine():
    cache = vkq_jax.empty_cache(
        num_layers=1,
        batch=1,
        num_kv_heads=2,
        head_dim=8,
        cache_length=4,
        quant=vkq_jax.KVQuantConfig(Cubes(), Cubes()),
        dtype=jnp.float32,
    )
    query, key, value = (
        jax.random.normal(jax.random.key(seed), (1, 9, heads, 8))
        for seed, heads in enumerate((4, 2, 2))
    )
    reading = vkq_jax.begin_prefill(cache, jnp.arange(9)[None] < 6)
    _, reading = reading.attend(0, query, key, value)
    cache = reading.finish()
    assert vkq_jax.cache_nbytes(cache).visual_codes == 2 * 2 * 6 * 8
    got = attention.attend_cache(query[:, -1:], cache.layer(0))
    expected = reference.attend_cache(query[:, -1:], cache.layer(0))
    np.testing.assert_allclose(got.output, expected.output, rtol=1e-5, atol=1e-5)
