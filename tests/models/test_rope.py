import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.checkpoints.hf_rope import read_rope
from models.generation.context import context_length
from models.layers.rope import apply_rope, rope
from models.layers.rope_config import RopeConfig, RopeKind
from models.layers.rope_frequencies import attention_scaling, inverse_frequencies
from models.text.registry import TEXT_SETTINGS
from tests.support.tiny_llava import CONFIG

PLAIN = RopeConfig(head_dim=8, max_length=64)

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 256,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [1.0 + 0.7 * i for i in range(16)],
}
PUBLISHED = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": YARN,
    "yarn, all settings": YARN
    | {
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
    },
    "yarn, explicit scaling": YARN | {"attention_factor": 1.7},
    "yarn, ramp without width": YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    "longrope": LONG,
    "longrope, factor": LONG | {"factor": 16.0},
    "longrope, explicit scaling": LONG | {"attention_factor": 1.3},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("length", [5, 1000, 1024, 3000])
def test_frequencies_of_transformers(kind, length):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    hf = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters=dict(PUBLISHED[kind]) | {"rope_theta": 5000.0},
    )
    theirs = LlamaRotaryEmbedding(hf)
    cos, sin = theirs(torch.zeros(1), torch.tensor([[0, length - 1]]))
    tower = TEXT_SETTINGS["llama"].read(
        {
            "max_position_embeddings": 1024,
            "rope_theta": 5000.0,
            "rope_parameters": PUBLISHED[kind],
        }
    )
    config = read_rope(tower, 32, "text_config")
    got = inverse_frequencies(config, length)
    np.testing.assert_allclose(got, theirs.inv_freq.numpy(), rtol=2e-6)
    assert attention_scaling(config) == pytest.approx(theirs.attention_scaling, rel=1e-6)
    got_cos, got_sin = rope(jnp.array([[0, length - 1]]), config, jnp.float32)
    # A relative error of 2e-6 is an angle of length * 2e-6.
    np.testing.assert_allclose(got_cos, cos[..., :16].numpy(), atol=1e-6 + 2e-6 * length)
    np.testing.assert_allclose(got_sin, sin[..., :16].numpy(), atol=1e-6 + 2e-6 * length)


def test_plain_frequencies_are_a_geometric_series():
    got = inverse_frequencies(PLAIN, 1)
    np.testing.assert_allclose(got, [1, 1e-1, 1e-2, 1e-3], rtol=1e-6)
    assert attention_scaling(PLAIN) == 1.0


def test_scores_depend_on_the_distance_of_positions_only():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(at_query, at_key):
        turned = (
            apply_rope(x, *rope(jnp.array([[at]]), PLAIN, jnp.float32))
            for x, at in ((query, at_query), (key, at_key))
        )
        return float(jnp.vdot(*turned))

    assert score(7, 3) == pytest.approx(score(40, 36), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 5), abs=1e-3)
    assert score(0, 0) == pytest.approx(float(jnp.vdot(query, key)), abs=1e-5)


def test_rotation_is_of_pairs_half_a_head_apart():
    x = jnp.zeros((1, 1, 1, 8)).at[..., 0].set(1.0)
    got = apply_rope(x, *rope(jnp.array([[2]]), PLAIN, jnp.float32))[0, 0, 0]
    expected = np.zeros(8)
    expected[0], expected[4] = math.cos(2), math.sin(2)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_angles_are_exact_before_they_are_rounded_to_the_dtype():
    positions = jnp.array([[1001]])  # bfloat16 would hold it as 1000
    cos, _ = rope(positions, PLAIN, jnp.bfloat16)
    assert cos.dtype == jnp.bfloat16
    assert float(cos[0, 0, 0]) == pytest.approx(math.cos(1001), abs=4e-3)


@pytest.mark.parametrize("kind", [RopeKind.DYNAMIC, RopeKind.LONGROPE])
def test_long_calls_stretch_traced_positions_too(kind):
    config = dataclasses.replace(
        PLAIN,
        kind=kind,
        factor=4.0,
        original_max_length=64,
        short_factor=(1.0,) * 4,
        long_factor=(3.0,) * 4,
    )
    frequencies = jax.jit(lambda length: inverse_frequencies(config, length))
    np.testing.assert_allclose(frequencies(64), inverse_frequencies(PLAIN, 0), rtol=1e-6)
    assert (frequencies(200)[1:] < 0.9 * frequencies(64)[1:]).all()


def test_llama3_keeps_fast_pairs_and_stretches_slow_ones():
    config = dataclasses.replace(
        PLAIN, kind=RopeKind.LLAMA3, factor=8.0, original_max_length=256, max_length=2048
    )
    ratio = inverse_frequencies(config, 1) / inverse_frequencies(PLAIN, 1)
    np.testing.assert_allclose(ratio[:2], [1.0, 1.0], atol=1e-6)
    assert float(ratio[-1]) == pytest.approx(1 / 8)


@pytest.mark.parametrize("kind", RopeKind)
def test_the_context_of_stretched_positions_is_longer_where_the_stated_one_is_not_yet(kind):
    ones = (1.0,) * (CONFIG.text.rope.head_dim // 2)
    changes = {"kind": kind, "factor": 2.5, "short_factor": ones, "long_factor": ones}
    rope = dataclasses.replace(CONFIG.text.rope, max_length=100, **changes)
    text = dataclasses.replace(CONFIG.text, rope=rope)
    expected = 250 if kind in (RopeKind.LINEAR, RopeKind.DYNAMIC) else 100
    assert context_length(dataclasses.replace(CONFIG, text=text)) == expected
