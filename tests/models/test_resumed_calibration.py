"""A calibration that was stopped goes on where it was; files hold equal tables once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.calibration import codes as calibration
from models.calibration import judging
from tests.support.tiny_llava import batch, prompt, tiny_model
from vkq_jax import CodeTables, DictionaryCodes, KVQuantConfig, SideTables, TokenClass
from vkq_jax.settings.calibrated import CalibratedCodes, CalibratedPreset

ROWS = (prompt(3, "image", 5), prompt(2, "image", 3, seed=1))
HALVES = (TokenClass(0.5, 1), TokenClass(0.5, 0))
PLANS = tuple(
    KVQuantConfig(codes, codes)
    for codes in (DictionaryCodes(HALVES, codebook=4), DictionaryCodes(HALVES[::-1], codebook=4))
)


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture
def calibrate(monkeypatch):
    monkeypatch.setattr(calibration, "calibrated_presets", {"a": PLANS, "b": PLANS[:1]})
    model = tiny_model()

    def run(**options):
        batches = [batch(*ROWS), batch(*ROWS, seed=1)]
        return models.calibrate_codes(
            model, batches, presets=["a", "b"], tokens=16, max_new_tokens=2, **options
        )

    return run


@pytest.mark.ci
def test_a_stopped_calibration_goes_on_from_its_folder(calibrate, monkeypatch, tmp_path):
    fits = []
    fit = calibration.CodeFitter.fit
    monkeypatch.setattr(
        calibration.CodeFitter, "fit", lambda self, quant: fits.append(quant) or fit(self, quant)
    )

    def stop(name, number):
        if number == 1:
            raise Stopped

    expected = calibrate()
    fits.clear()
    with pytest.raises(Stopped):
        calibrate(folder=tmp_path, on_plan=stop)
    assert len(fits) == 2
    asked = []
    sample = calibration.sample_codes
    monkeypatch.setattr(
        calibration, "sample_codes", lambda *args, **kw: asked.append(1) or sample(*args, **kw)
    )
    got = calibrate(folder=tmp_path)
    assert asked == []
    assert fits == list(PLANS)  # preset b has a plan of a, which is kept, too
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    monkeypatch.setattr(judging, "_judge", lambda *args: pytest.fail("judged again"))
    jax.tree.map(np.testing.assert_array_equal, calibrate(folder=tmp_path), expected)


@pytest.mark.ci  # calibrates twice
def test_parts_of_other_arguments_are_not_taken(calibrate, tmp_path):
    calibrate(folder=tmp_path)
    files = set(tmp_path.iterdir())
    other = calibrate(folder=tmp_path, seed=1)
    assert len(set(tmp_path.iterdir())) == 2 * len(files)
    jax.tree.map(np.testing.assert_array_equal, other, calibrate(seed=1))


def test_equal_tables_are_stored_once(tmp_path):
    def presets(count):
        tables = CodeTables(SideTables(codebook=jnp.ones((1, 2, 4, 8))), SideTables())
        return tuple(
            CalibratedPreset(tables, None, name=f"n{i}", quant=PLANS[0]) for i in range(count)
        )

    for name, count in (("one", 1), ("many", 4)):
        vkq_jax.save_tables(tmp_path / name, CalibratedCodes(presets(count), model="m"))
        assert (tmp_path / name).read_bytes().count(b"data_offsets") == 1
    loaded = vkq_jax.load_tables(tmp_path / "many")
    assert loaded.names == ("n0", "n1", "n2", "n3")
    for preset in loaded.presets:
        jax.tree.map(np.testing.assert_array_equal, preset.tables, presets(1)[0].tables)
