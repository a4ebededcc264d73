"""A mixture of experts against every expert run on every token."""

import jax
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
    module.gate.kernel[...] = 50 * module.gate.kernel[...]
    expected = _every_expert(module, np.asarray(x, np.float64), norm)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(nnx.jit(MoeMlp.__call__)(module, x), expected, atol=1e-5 * scale)
    mapped = jax.jit(jax.vmap(lambda row: module(row[None])[0]))(x)
    np.testing.assert_allclose(mapped, expected, atol=1e-5 * scale)


def _every_expert(module: MoeMlp, x: np.ndarray, norm: bool) -> np.ndarray:
    experts = module.experts
    router, gate, up, down = (
        np.asarray(each[...], np.float64)
        for each in (module.gate.kernel, experts.gate_proj, experts.up_proj, experts.down_proj)
    )
    logits = x @ router
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    weight = np.where(shares >= np.sort(shares)[..., -2:-1], shares, 0)
    weight = weight / weight.sum(-1, keepdims=True) if norm else weight
    gated = np.einsum("btd,edi->btei", x, gate)
    inner = gated / (1 + np.exp(-gated)) * np.einsum("btd,edi->btei", x, up)
    return np.einsum("btei,eid,bte->btd", inner, down, weight)
