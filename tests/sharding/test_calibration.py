"""Tables of codes, fitted on a mesh and used on one: each device has its own heads'."""

import jax
import numpy as np
import pytest

import models
import vkq_jax
from models.attached_tables import attach_tables, find_codes
from models.calibration import codes as code_calibration
from tests.sharding.cases import STEPS, assert_same, inputs_of
from tests.sharding.test_collectives import SUMS, collectives, programs
from vkq_jax import DictionaryCodes, KVQuantConfig, TokenClass
from vkq_jax.cache.split_tensor import SplitTensor
from vkq_jax.sharding.bank_parts import join_banks

NAME, MESH = "4 KV heads", "data=2,model=4"


def assert_split(tables, whole):
    """Each device holds the tables of one of the four KV heads, bit for bit those of the whole."""
    for own, expected in zip(jax.tree.leaves(tables), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(own, expected)
        assert {x.data.nbytes for x in own.addressable_shards} == {expected.nbytes // 4}


@pytest.mark.mesh
def test_tables_are_fitted_and_used_on_a_mesh(cases, monkeypatch, tmp_path):
    """And caches of learned dictionaries go into files and to other meshes, whole and in parts."""
    classes = (TokenClass(0.3, 2), TokenClass(0.7, 1))
    side = DictionaryCodes(classes, codebook=16, learned=True, metric=True)
    monkeypatch.setattr(
        code_calibration, "calibrated_presets", {"vkq-1bit": (KVQuantConfig(side, side),)}
    )
    found = []
    for mesh in (None, MESH):
        model = cases.model(NAME, mesh)
        found.append(models.calibrate_codes(model, [inputs_of(model)], max_new_tokens=2, tokens=64))
    one, many = found
    assert many.model == one.model
    assert jax.tree.structure(many) == jax.tree.structure(one)
    vkq_jax.save_tables(tmp_path / "tables", one)
    read = vkq_jax.load_tables(tmp_path / "tables")
    # The devices of a head, two of them on the latter mesh, share out sequences.
    for mesh, shared in ((MESH, {}), ("model=8", {"all-to-all": 2})):
        attached = attach_tables(cases.model(NAME, mesh), tmp_path / "tables")
        assert_split(find_codes(attached, "vkq-1bit")[1], read.presets[0].tables)
        _, step = programs(cases, NAME, mesh, "vkq-1bit", tables=read)
        assert collectives(step) == SUMS | shared
    vkq_jax.save_tables(tmp_path / "few", jax.tree.map(lambda x: x[:, :2], read))
    with pytest.raises(ValueError, match="expected tables of 2 layers and 4 KV heads"):
        attach_tables(cases.model(NAME, MESH), tmp_path / "few")
    assert_split(many, many)
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
    few = vkq_jax.take_sequences(answers[1].cache, range(3))
    expected = vkq_jax.take_sequences(answers[0].cache, range(3))
    for mesh in ("model=8", "data=4,model=2", "model=8"):  # in two parts, whole, in two parts
        vkq_jax.save_cache(tmp_path / "cache", few)
        few = models.load_cache(tmp_path / "cache", mesh)
        assert isinstance(few.visual[0].key, SplitTensor) == (mesh == "model=8")
        assert_same(join_banks(few), expected)
