"""A mixture of experts against every expert run on every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.layers.activations import Activation
from models.layers.linear import Maker
from models.layers.moe import MoeConfig, MoeMlp


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 3), (1, 70)])
@pytest.mark.parametrize("norm", [True, False])
def test_tokens_go_through_their_best_experts(batch, tokens, norm):
    config = MoeConfig(
        num_experts=5, num_experts_per_tok=2, intermediate_size=6, norm_topk_prob=norm
    )
    module = MoeMlp(Maker.create(nnx.Rngs(0)), 8, config, Activation.SILU)
    x = 10 * jax.random.normal(jax.random.key(tokens), (batch, tokens, 8))
    shares = jax.nn.softmax(50 * module.gate(x))
    module.gate.kernel[...] = 50 * module.gate.kernel[...]
    weight = jnp.where(shares >= jnp.sort(shares)[..., -2:-1], shares, 0)
    weight = weight / weight.sum(-1, keepdims=True) if norm else weight
    gate, up, down = (
        each[...]
        for each in (module.experts.gate_proj, module.experts.up_proj, module.experts.down_proj)
    )
    inner = jax.nn.silu(jnp.einsum("btd,edi->btei", x, gate)) * jnp.einsum("btd,edi->btei", x, up)
    expected = jnp.einsum("btei,eid,bte->btd", inner, down, weight)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(module(x), expected, atol=1e-5 * scale)
    mapped = jax.vmap(lambda row: module(row[None])[0])(x)
    np.testing.assert_allclose(mapped, expected, atol=1e-5 * scale)
