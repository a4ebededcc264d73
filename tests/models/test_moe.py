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
        num_experts=5, num_experts_per_tok=2, moe_intermediate_size=6, norm_topk_prob=norm
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


def test_groups_are_chosen_by_their_two_best_experts():
    """DeepSeek-V3, section 2.1.2: the bias counts in the choice alone."""
    config = MoeConfig(
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=4,
        scoring_func="sigmoid",
        n_group=3,
        topk_group=1,
    )
    module = MoeMlp(Maker.create(nnx.Rngs(0)), 8, config, Activation.SILU)
    rng = np.random.default_rng(0)
    bias = rng.normal(size=6).astype(np.float32)
    module.e_score_correction_bias[...] = bias
    module.gate.kernel[...] = 3 * module.gate.kernel[...]
    tokens = rng.normal(size=(40, 8)).astype(np.float32)
    shares = 1 / (1 + np.exp(-np.asarray(tokens, np.float64) @ np.asarray(module.gate.kernel[...])))
    sums = (shares + bias).reshape(40, 3, 2).sum(-1)  # of groups of two both are the best
    group = sums.argmax(-1)
    assert len(set(group)) > 1
    share, expert = module._chosen_with_bias(jax.numpy.asarray(tokens))
    np.testing.assert_array_equal(np.asarray(expert) // 2, np.repeat(group[:, None], 2, axis=1))
    np.testing.assert_allclose(share, np.take_along_axis(shares, expert, axis=-1), atol=1e-5)


def test_a_token_whose_experts_all_have_weight_0_gets_0():
    config = MoeConfig(
        num_experts=3, num_experts_per_tok=2, moe_intermediate_size=4, scoring_func="sigmoid"
    )
    module = MoeMlp(Maker.create(nnx.Rngs(0)), 8, config, Activation.SILU)
    module.gate.kernel[...] = np.full((8, 3), -100, np.float32)
    np.testing.assert_array_equal(module(np.ones((1, 2, 8), np.float32)), np.zeros((1, 2, 8)))
