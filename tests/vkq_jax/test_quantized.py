"""The decoding contract against its equation, element by element."""

import jax.numpy as jnp
import numpy as np
import pytest

from vkq_jax import packing
from vkq_jax.quantized import AffineTensor
from vkq_jax.rotation import hadamard

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
