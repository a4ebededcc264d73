"""`vkq inspect` of models with several kinds of layers, whose visual tokens are no patches."""

import json

import numpy as np
import pytest

import models
import vkq_jax
from models.generation.prefill import prefill
from tests.models.families import test_gemma4, test_mllama
from tests.support.pictures import random_picture
from vkq_apps.cli.inspect import inspect
from vkq_apps.inspection.measure import inspect_visual

mllama, gemma4 = test_mllama.model, test_gemma4.model


def test_pictures_of_cross_attention_layers_are_measured_as_they_are_cached(mllama):
    pictures = [test_mllama.WIDE, test_mllama.SQUARE]
    (text,) = test_mllama.prompts(mllama, 2)
    inputs = models.prepare(mllama, prompts=text, images=pictures)
    quant = vkq_jax.per_layer("minmax-8bit", {1: "none"}).settle(4, 1)
    (found,) = inspect_visual(mllama, inputs, quant)
    assert found.layers == test_mllama.CROSS
    _, cache = prefill(mllama, inputs, quant=quant, cache_length=inputs.prompt_shape.text)
    assert found.nbytes == vkq_jax.cache_nbytes(cache)
    np.testing.assert_array_equal(found.key.error.relative_squared_error[0], 0)
    assert 0 < found.key.error.relative_squared_error[1, 0] < 1e-3
    # No text is read there, and the pictures side by side are seen together.
    np.testing.assert_allclose(found.before.visual_mass, 1, atol=1e-5)
    assert found.bits.shape == (2, 3 * test_mllama.TILE_FEATURES)


@pytest.mark.ci  # compiles both answers and draws ten plots
def test_layers_with_heads_of_two_sizes_have_plots_of_their_own(gemma4, tmp_path, capsys):
    random_picture(20, 45).save(tmp_path / "picture.png")
    inspect(
        model=gemma4.source,
        image=[tmp_path / "picture.png"],
        prompt="what is this ?",
        out_folder=tmp_path / "out",
        quant="signs-1bit",
        max_new_tokens=1,
        json=True,
    )
    record = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in record["layers"]] == [0, 1]
    assert [len(row["key_error"]) for row in record["layers"]] == [2, 1]
    kinds = ("2_heads_of_8", "1_heads_of_16")
    plots = {f"errors_{kind}.png" for kind in kinds} | {
        f"attention_mass_{kind}.png" for kind in kinds
    }
    assert plots <= set(record["files"])
    assert not any(name.startswith("tokens") for name in record["files"])
    with np.load(tmp_path / "out" / "arrays.npz") as arrays:
        for number, kind in enumerate(kinds):
            assert arrays[f"{kind}_layers"].tolist() == [number]
