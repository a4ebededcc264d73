"""Calibration of a tiny model that has several kinds of layers, with one cheap plan."""

import numpy as np
import pytest

import models
from models.calibration import codes as code_calibration
from vkq_jax import DictionaryCodes, KVQuantConfig, TokenClass

_SIDE = DictionaryCodes((TokenClass(0.5, 2), TokenClass(0.5, 1)), codebook=4)
PLAN = KVQuantConfig(_SIDE, _SIDE)


def calibrate(model, inputs):
    """Tables of one plan, of which nothing has to be judged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_calibration, "calibrated_presets", {"vkq-1bit": (PLAN,)})
        return models.calibrate_codes(model, [inputs], max_new_tokens=2, tokens=16)


def check_calibration(model, inputs, tables_of):
    """Calibrates the model, answers from its tables, and compares these with `tables_of` (cache).

    That gives the tables in the cache of each kind of layers.
    """
    codes = calibrate(model, inputs)
    found = codes.presets[0].tables
    answer = models.generate(model, inputs, tables=codes, max_new_tokens=2, stop_tokens=())
    assert answer.cache.quant == PLAN
    kinds = found if isinstance(found, tuple) else (found,)
    for own, expected in zip(tables_of(answer.cache), kinds, strict=True):
        np.testing.assert_array_equal(own.key.codebook, expected.key.codebook)
        assert np.isfinite(np.asarray(expected.value.codebook, np.float32)).all()
    return codes
