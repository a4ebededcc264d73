"""The search for quantile levels and the rows of the ablation, without a model."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vkq_apps.evals import ablation, ablation_rows, quantile_search
from vkq_jax import Granularity, LevelCodes, Quantile
from vkq_jax.codes.code_tables import ClassTables, CodeTables, SideTables
from vkq_jax.codes.quantize import quantize
from vkq_jax.settings.presets import calibrated_presets, presets

RESULTS = Path(__file__).parents[3] / "results"


def test_candidates_stay_within_the_bits():
    found = quantile_search.settings_within(1.5, 576, 64)
    assert len(set(found)) == len(found)
    assert {codes.granularity for codes in found} == set(Granularity)
    for codes in found:
        assert quantile_search.bits_of(codes, 576, 64) <= 1.5
    assert quantile_search.settings_within(1.0, 576, 64) == []
    coded = quantize(jnp.ones((576, 64)), found[0])
    held = sum(x.size * x.dtype.itemsize for x in (coded.packed, coded.lower, coded.upper))
    assert quantile_search.bits_of(found[0], 576, 64) == 8 * held / (576 * 64)


def test_the_preset_is_what_the_search_chose():
    chosen = json.loads((RESULTS / "quantile_search.json").read_text())["chosen"]
    preset = presets["quantile-1bit"]
    for side in quantile_search.SIDES:
        found = quantile_search.described(getattr(preset, side))
        # Groups of the 64 channels of the embedded model's heads are whole tokens.
        assert (
            chosen[side] | {"group_size": (chosen[side]["group_size"] or 64) % 64 or None} == found
        )


def test_the_search_takes_what_measures_least(monkeypatch):
    """Where keys want rotated tokens at a quantile of 0.1, and values plain channels at 0.2125."""

    def measure(self, candidates):
        found = []
        for quant in candidates:
            key = 0.0
            if isinstance(quant.key, LevelCodes):
                key = abs(quant.key.range_rule.q - 0.1) + (quant.key.rotation is None)
                key += quant.key.granularity is Granularity.PER_CHANNEL
            value = 0.0
            if isinstance(quant.value, LevelCodes):
                value = abs(quant.value.range_rule.q - 0.2125)
                value += quant.value.rotation is not None
                value += quant.value.granularity is Granularity.PER_TOKEN
            found.append(key + value)
        return found

    monkeypatch.setattr(quantile_search.Search, "measure", measure)
    search = quantile_search.Search(None, [], 1, None)
    quant, kl = quantile_search.choose(search, quantile_search.settings_within(1.5, 576, 64))
    assert quant.key.range_rule == Quantile(0.1)
    assert (quant.key.rotation, quant.key.granularity) == ("hadamard", Granularity.PER_TOKEN)
    assert quant.value.range_rule == Quantile(quantile_search.NORMAL)
    assert (quant.value.rotation, quant.value.granularity) == (None, Granularity.PER_CHANNEL)
    assert kl == 0


@pytest.mark.parametrize("name", ["vkq-1bit", "vkq-half", "vkq-2bit"])
def test_every_row_differs_from_the_whole_plan_in_one_part(name):
    for number, plan in enumerate(calibrated_presets[name]):
        whole, *rows = ablation_rows.variants(name, str(number))
        assert whole.quant == plan
        assert len({row.name for row in rows}) == len(rows) >= 5
        for row in rows:
            same_fit = row.samples is whole.samples and row.tables is whole.tables
            assert (row.quant == plan) != same_fit
    whole, *rows = ablation_rows.variants(name, ablation_rows.PLAIN)
    assert whole.quant == presets[name]
    assert len({row.quant for row in rows} - {whole.quant}) == len(rows) >= 2


def test_without_gains_channels_keep_their_steps():
    channel, shift = jnp.asarray([[0, 0, 1]]), jnp.asarray([[0, 1, 0]])
    step, gain = jnp.asarray([[0.5, 2.0]]), jnp.asarray([[1.1, 1.5]])
    weight = jnp.take_along_axis(gain * step, channel, -1) * 2.0 ** (shift - 1)
    top = jnp.asarray([[3, 1]])
    one = ClassTables(jnp.eye(2)[None], None, step, top, channel, shift, weight)
    side = SideTables(classes=(one,))
    plain = ablation_rows.without_gains(CodeTables(side, side)).key.classes[0]
    np.testing.assert_allclose(plain.weight, [[0.25, 0.5, 1.0]])


def test_the_ablation_knows_its_implementations(tmp_path, capsys):
    """Told before the model is loaded."""
    assert ablation.main(["--out", str(tmp_path / "a.json"), "--implementation", "fast"]) == 2
    assert "implementation must be auto, " in capsys.readouterr().err


def test_parts_are_rows_beside_the_whole_plan():
    part = "scales of least squared error"
    half, one = ablation_rows.chosen_rows(["vkq-half/0", "vkq-1bit/1"], [part])
    assert [row.part for row in half] == ["", part]
    assert [row.part for row in one] == [""]  # which has no such row
