"""Tables of codes, fitted on a mesh and used on one: each device has its own heads'."""

import jax
import numpy as np
import pytest

import models
from models.calibration import codes as code_calibration
from tests.sharding.cases import CALIBRATED, STEPS, assert_same, inputs_of

NAME, MESH = "4 KV heads", "data=2,model=4"


@pytest.mark.mesh
def test_tables_are_fitted_and_used_on_a_mesh(cases, monkeypatch):
    one_plan = {"vkq-1bit": CALIBRATED["vkq-1bit"][:1]}
    monkeypatch.setattr(code_calibration, "calibrated_presets", one_plan)
    found = []
    for mesh in (None, MESH):
        model = cases.model(NAME, mesh)
        found.append(models.calibrate_codes(model, [inputs_of(model)], max_new_tokens=2, tokens=64))
    one, many = found
    assert many.model == one.model
    assert jax.tree.structure(many) == jax.tree.structure(one)
    answers = [
        models.generate(
            model,
            inputs_of(model),
            max_new_tokens=STEPS,
            stop_tokens=(),
            quant="vkq-1bit",
            tables=one,
        )
        for model in (cases.model(NAME), cases.model(NAME, MESH))
    ]
    np.testing.assert_array_equal(answers[1].tokens, answers[0].tokens)
    assert_same(answers[1].cache, answers[0].cache)
