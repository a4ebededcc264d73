"""Clips: as transformers' processors make them (tests/goldens/clips.npz), where they come from."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import models
from models.families.registry import family_of
from models.layers.linear import Maker
from models.model import Model
from tests.goldens.clips import FILE
from tests.support.clip_cases import CASES, clip, write_files

LEVEL = 1 / 255


def stand_in(folder, case):
    """A model without weights, which `prepare` does not look at."""
    folder.mkdir(exist_ok=True)
    write_files(folder, case)
    config = models.read_config(folder)
    module = nnx.eval_shape(
        lambda: family_of(config.model_type).build(config, Maker.create(nnx.Rngs(0)))
    )
    return dataclasses.replace(Model.from_module(module), source=str(folder))


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    made = {}

    def get(title):
        if title not in made:
            made[title] = stand_in(tmp_path_factory.mktemp("clips"), CASES[title])
        return made[title]

    return get


@pytest.mark.parametrize("title", CASES)
def test_clips_come_out_as_of_transformers(model_of, title):
    """Ids, grids and positions are equal, and most levels; the rest differ by two of 255."""
    case, model = CASES[title], model_of(title)
    with np.load(FILE) as file:
        golden = {key.split("/")[1]: file[key] for key in file if key.startswith(f"{title}/")}
    got = models.prepare(
        model,
        prompts=case.prompt,
        images=[clip(1, *size)[0] for size in case.pictures] or None,
        videos=[models.Clip(clip(*shape), fps) for *shape, fps in case.clips],
    )
    np.testing.assert_array_equal(got.input_ids, golden["input_ids"])
    expected = models.prepare(model, **golden)
    jax.tree.map(np.testing.assert_array_equal, got.vision_layout, expected.vision_layout)
    np.testing.assert_array_equal(got.positions, expected.positions)
    widest = 2 * LEVEL / 0.26  # by the least image_std
    differences = np.abs(np.asarray(got.pixel_values) - expected.pixel_values)
    assert differences.max() < widest
    assert (differences < 1e-5).mean() > 0.7
