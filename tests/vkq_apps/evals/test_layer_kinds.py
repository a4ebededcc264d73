"""Token dropping and errors by layer, on decoders of several kinds of layers."""

import shutil
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.attached_tables import find_codes
from models.generation.prefill import prefill
from models.generation.teacher_forcing import EvaluatedModel, Prompted, parts_of
from tests.models.families import test_gemma4, test_mllama
from tests.support import qwen_vl
from tests.support.pictures import random_picture
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.tiny_llava import batch, biased_model, prompt
from vkq_apps.evals.dropping import attention_mass, read_kept
from vkq_apps.evals.layers import layer_errors

mllama, small = test_mllama.model, test_gemma4.model
# Layers that read visual tokens; the last two of Gemma 4 read the keys of the first two.
KINDS = {"mllama": (1, 3), "gemma4": (0, 1, 2, 3), "qwen3_5": (1, 4)}


@pytest.fixture(scope="module")
def gemma4(small, tmp_path_factory):
    """With a window that hides nothing, as token dropping needs it."""
    folder = tmp_path_factory.mktemp("gemma4") / "wide"
    shutil.copytree(small.source, folder)
    config = test_gemma4.config_json(text={"sliding_window": 400})
    return write_random_checkpoint(folder, config)


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_5")
    qwen_vl.write_processor(folder)
    return write_random_checkpoint(folder, qwen_vl.config_json("qwen3_5"))


@pytest.fixture(params=KINDS)
def read(request):
    """The model, its pictures, the prompts read in full precision, and its layers."""
    model = request.getfixturevalue(request.param)
    pictures = [random_picture(8, 8), random_picture(20, 45)]
    prompts = ["<image> what is this ?", "what <image> is this"]
    whole = models.prepare(model, prompts=prompts, images=pictures)
    parts = parts_of(model, whole)
    owner = jnp.arange(2, dtype=jnp.int32)
    reading = EvaluatedModel(model).read(*parts, owner, cache_length=32)
    return model, parts[0], reading, request.param


@pytest.mark.ci  # compiles three decoders
def test_every_kind_of_layer(read):
    model, pictures, reading, name = read
    if name == "mllama":
        with pytest.raises(NotImplementedError, match=r"token dropping: .* a mllama model"):
            attention_mass(model, pictures)
    else:
        kept = read_kept(EvaluatedModel(model), reading, pictures, share=1 - 1e-9)
        np.testing.assert_allclose(kept.logits, reading.prompted.logits, atol=1e-4)
        few = read_kept(EvaluatedModel(model), reading, pictures, share=0.25)
        assert np.abs(few.logits - reading.prompted.logits).max() > 1e-2
    layers = KINDS[name]
    changes = vkq_jax.per_layer("none", {layers[1]: "minmax-1bit"})
    quant, tables = find_codes(model, changes)
    coded = EvaluatedModel(model).read_coded(reading, tables, quant=quant, quantize_at="prompt")
    errors = layer_errors(model, reading.prompted, coded, jnp.asarray([5, 6], jnp.int32))
    # The last layer of Gemma 4 reads the keys of the second one.
    wrong = {layers[1], *((3,) if name == "gemma4" else ())}
    for values in errors.values():
        assert values.shape == (2, model.config.text.num_hidden_layers)
        for number, own in enumerate(np.asarray(values).T):
            assert (own.max() > 1e-4) if number in wrong else (own < 1e-9).all(), (number, own)


def test_scores_of_a_tower_with_key_biases_have_them():
    model, inputs = biased_model(), batch(prompt(3, "image", 4), prompt("image", 6))
    read = partial(prefill, model, inputs, cache_length=12)
    exact, coded = (
        Prompted(*read(quant=vkq_jax.resolve(quant))) for quant in ("none", "minmax-8bit")
    )
    assert all(part.key_bias is not None for part in coded.cache.parts)
    errors = layer_errors(model, exact, coded, jnp.asarray([5, 6], jnp.int32))
    assert 0 < float(errors["score"].max()) < 1e-3
    assert 0 < float(errors["output"].max()) < 1e-3
