"""Files of calibrated tables by field and by bytes: refused, or tables that the codes can use."""

import random

import chex
import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import save_file

import vkq_jax
from models.attached_tables import find_codes
from models.model_fingerprint import fingerprint
from tests.support.caches import random_tables
from tests.support.mutated_files import mutated_bytes, mutated_fields, refused_or
from tests.support.tiny_llava import tiny_model
from vkq_jax.cache.visual_bank import code_bank
from vkq_jax.files.stored_form import digest_of
from vkq_jax.pytree import take_layer

pytestmark = pytest.mark.usefixtures("as_users_run_it")

LAYERS, HEADS, WIDTH = 3, 2, 16  # of the tiny model


@pytest.fixture(scope="module")
def whole():
    """The model and tables of two presets for it."""
    model, presets = tiny_model(), []
    for name, codes in (
        ("vkq-1bit", vkq_jax.DictionaryCodes(codebook=5)),
        ("vkq-half", vkq_jax.DictionaryCodes(learned=True, metric=True)),
    ):
        quant = vkq_jax.KVQuantConfig(codes, codes)
        layers = [random_tables(quant, HEADS, WIDTH, seed) for seed in range(LAYERS)]
        tables = jax.tree.map(lambda *x: jnp.stack(x), *layers)
        scores = vkq_jax.ScoreMap(jnp.ones((LAYERS, 4)), jnp.zeros((LAYERS, 4)), quant=quant)
        presets.append(vkq_jax.CalibratedPreset(tables, scores, name=name, quant=quant))
    return model, vkq_jax.CalibratedCodes(tuple(presets), model=fingerprint(model))


def can_be_used(model):
    """Every preset of the file, if it is this model's, codes keys and values of every layer."""

    def accept(loaded):
        for preset in loaded.presets:
            quant, tables = find_codes(model, preset.name, loaded)
            assert (quant, tables is None) == (preset.quant, preset.tables is None)
            bank = jax.ShapeDtypeStruct((1, HEADS, 32, WIDTH), jnp.float32)
            valid = jax.ShapeDtypeStruct((1, 32), bool)
            coded = jax.eval_shape(
                lambda key, valid, quant=quant, tables=tables: code_bank(
                    key, key, valid, quant, take_layer(tables, LAYERS - 1)
                ),
                bank,
                valid,
            )
            assert coded.length.shape == (1,)

    return accept


def test_mutated_tables_are_refused_or_fit_the_model(whole, tmp_path, cases, one_clear_error):
    model, codes = whole
    original, path = tmp_path / "tables.safetensors", tmp_path / "mutated.safetensors"
    vkq_jax.save_tables(original, codes)
    can_be_used(model)(codes)
    for case in cases(30):
        rng = random.Random(f"tables/{case}")
        if rng.random() < 0.3:
            path.write_bytes(mutated_bytes(original.read_bytes(), rng))

            def load(path):
                loaded = vkq_jax.load_tables(path)
                chex.assert_trees_all_equal(loaded, codes)
                return loaded

        else:
            arrays, metadata = mutated_fields(original, rng)
            metadata["sha256"] = digest_of(metadata["structure"], arrays)
            save_file(arrays, path, metadata)

            def load(path):
                loaded = vkq_jax.load_tables(path)
                can_be_used(model)(loaded)
                return loaded

        refused_or(path, one_clear_error, lambda loaded: None, load)
