"""Generation through the fused kernel, emulated: the tokens of XLA's attention."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.prefill import prefill
from pallas_kernels import TiledSigns
from pallas_kernels.attention import mosaic_gpu, support
from pallas_kernels.attention.launch import emulated_launch
from pallas_kernels.isa.program import run_emulated
from pallas_kernels.quantize import quantize_bank
from pallas_kernels.quantize.quantize_bank import fused_bank
from tests.support.tiny_llava import CONFIG, batch, prompt, tiny_model
from vkq_jax.passes import coding

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 1, seed=1), prompt(6, seed=2))


@pytest.fixture
def fused(monkeypatch):
    """As if there were a GPU, whose kernels are emulated."""
    monkeypatch.setattr(support, "device_reason", lambda: None)
    attend = functools.partial(mosaic_gpu.attend_layer, launch=emulated_launch)
    monkeypatch.setattr(mosaic_gpu, "attend_layer", attend)
    code = functools.partial(fused_bank, run=run_emulated)
    monkeypatch.setattr(quantize_bank, "fused_bank", code)
    # Coding is traced once for its shapes: with launches on a GPU, and apart from that emulated.
    coding._code.clear_cache()
    yield
    coding._code.clear_cache()


HEADS = {
    "float32": (jnp.float32, 64),
    "bfloat16": (jnp.bfloat16, 64),
    "96 channels": (jnp.float32, 96),
}


@pytest.fixture(scope="module", params=HEADS)
def model(request):
    """Heads that the kernel covers; in float32 the text bank is XLA's, in bfloat16 the kernel's."""
    dtype, head_dim = HEADS[request.param]
    text = dataclasses.replace(
        CONFIG.text,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=head_dim,
        rope=dataclasses.replace(CONFIG.text.rope, head_dim=head_dim),
    )
    return tiny_model(dtype, config=dataclasses.replace(CONFIG, text=text))


@pytest.mark.parametrize(
    ("model", "quantize_at"),
    [
        ("float32", "prompt"),
        ("bfloat16", "image"),
        pytest.param("96 channels", "image", marks=pytest.mark.ci),
    ],
    indirect=["model"],
)
def test_one_bit_gives_the_tokens_of_xla(fused, model, quantize_at):
    inputs = batch(*ROWS)

    def run(implementation):
        return models.generate(
            model,
            inputs,
            quant="signs-1bit",
            max_new_tokens=4,
            stop_tokens=(),
            quantize_at=quantize_at,
            implementation=implementation,
            bucketing=False,  # an emulated kernel takes long for each query
        )

    got, expected = run(None), run("xla")
    assert isinstance(got.cache.visual[0].key, TiledSigns)
    assert not isinstance(expected.cache.visual[0].key, TiledSigns)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(
        got.cache.visual[0].key.dequantize(), expected.cache.visual[0].key.dequantize()
    )


def windowed(model):
    """The same weights, the second layer with a sliding window shorter than an image."""
    text = dataclasses.replace(model.config.text, sliding_window=9, full_layers=(0,))
    return dataclasses.replace(model, config=dataclasses.replace(model.config, text=text))


@pytest.mark.parametrize(
    ("model", "quant"),
    [
        ("float32", "signs-1bit"),
        ("bfloat16", "calibquant-1bit"),
        ("96 channels", "signs-1bit"),
    ],
    indirect=["model"],
)
@pytest.mark.ci
def test_a_sliding_window_gives_the_tokens_of_xla(fused, model, quant):
    def run(implementation):
        return models.generate(
            windowed(model),
            batch(*ROWS),
            quant=quant,
            max_new_tokens=4,
            stop_tokens=(),
            quantize_at="image",
            implementation=implementation,
            bucketing=False,  # an emulated kernel takes long for each query
        ).tokens

    np.testing.assert_array_equal(run("mosaic_gpu"), run("xla"))


@pytest.mark.parametrize("model", ["float32", "bfloat16"], indirect=True)
@pytest.mark.ci
def test_a_static_score_map_gives_the_tokens_of_xla(fused, model):
    inputs = batch(*ROWS)
    score_map = models.calibrate_scores(model, inputs, max_new_tokens=2)

    def run(implementation):
        return models.generate(
            model,
            inputs,
            quant="calibquant-1bit",
            max_new_tokens=4,
            stop_tokens=(),
            quantize_at="image",
            implementation=implementation,
            score_map=score_map,
            bucketing=False,
        ).tokens

    np.testing.assert_array_equal(run("mosaic_gpu"), run("xla"))


@pytest.mark.parametrize(
    "model",
    ["float32", *(pytest.param(x, marks=pytest.mark.ci) for x in ("bfloat16", "96 channels"))],
    indirect=True,
)
def test_a_conversation_goes_on(fused, model):
    """A second turn reads the packed bank with several query positions at once."""
    question = batch(prompt(4, seed=5), prompt(2, seed=6), prompt(3, seed=7))

    def run(implementation):
        turn = functools.partial(
            prefill,
            model,
            quant=vkq_jax.presets["signs-1bit"],
            cache_length=20,
            implementation=implementation,
        )
        return turn(question, turn(batch(*ROWS))[1])[0]

    tolerance = 2e-4 if model.module().text.dtype == jnp.float32 else 3e-2
    np.testing.assert_allclose(run(None), run("xla"), rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", ["bfloat16"], indirect=True)
def test_full_precision_too(fused, model):
    """The kernel's dense banks are bfloat16."""
    inputs = batch(*ROWS)

    def run(implementation):
        return models.generate(
            model,
            inputs,
            quant="none",
            max_new_tokens=4,
            stop_tokens=(),
            implementation=implementation,
            bucketing=False,  # an emulated kernel takes long for each query
        ).tokens

    np.testing.assert_array_equal(run("mosaic_gpu"), run("xla"))
