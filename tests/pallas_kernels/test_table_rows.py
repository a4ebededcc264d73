"""Products with the model's tables beside a launch, against float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import vkq_jax.bits.exact_einsum
from pallas_kernels.attention.kernel_spec import BOOK
from pallas_kernels.attention.table_rows import table_rows
from pallas_kernels.layout.tiled_dictionary import TiledDictionary
from tests.support.caches import Shape, random_layer, random_tables, relative_error
from vkq_jax import ClassTables, DictionaryCodes, KVQuantConfig, SideTables, TokenClass
from vkq_jax.codes.dictionary_tensor import hadamard_dictionary
from vkq_jax.settings.presets import calibrated_presets

HEAD_DIM, QUERIES = 64, 3
PARTS = [(0, 256), (1, 128), (2, 64)]


@pytest.fixture(scope="module")
def coded():
    """Keys in dictionary codes, their tables in bfloat16; the last class has Hadamard planes."""
    codes = calibrated_presets["vkq-2bit"][1].key
    assert isinstance(codes, DictionaryCodes)
    classes = (TokenClass(0.3, 3.5), TokenClass(0.4, 1.5), TokenClass(0.3, 1))
    codes = dataclasses.replace(codes, classes=classes, codebook=16)
    quant = KVQuantConfig(codes, codes)
    shape = Shape(head_dim=HEAD_DIM, num_heads=2, visual=((70, (70, 33)),))
    bank = jax.eval_shape(lambda: pallas_kernels.tile(random_layer(shape, quant)[1].visual[0]))
    assert isinstance(bank.key, TiledDictionary)
    tables = random_tables(quant, 2, HEAD_DIM).key
    tables = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim == 3 else x, tables)
    assert tables.classes is not None
    tables = dataclasses.replace(tables, classes=(*tables.classes[:2], None))
    return bank.key, tables


def expected_rows(tables: SideTables) -> np.ndarray:
    """[K, N, H] in float64."""
    found = []
    for number, size in PARTS:
        learned = tables.of_class(number)
        if isinstance(learned, ClassTables):
            dictionary = np.asarray(learned.dictionary(), np.float64)
        else:
            dictionary = np.tile(hadamard_dictionary(HEAD_DIM, 64)[None], (2, 1, 1))
        found.append(np.pad(dictionary, [(0, 0), (0, 0), (0, size - dictionary.shape[-1])]))
    book = np.asarray(tables.codebook.astype(jnp.float32), np.float64).swapaxes(-1, -2)
    found.append(np.pad(book, [(0, 0), (0, 0), (0, BOOK - book.shape[-1])]))
    return np.concatenate(found, -1).swapaxes(-1, -2)


@pytest.mark.parametrize("split", [False, True])
def test_both_products_equal_those_in_float64(coded, split, monkeypatch):
    """In float32, and in two products of bfloat16 as a GPU takes them."""
    monkeypatch.setattr(vkq_jax.bits.exact_einsum, "on_gpu", lambda: split)
    key, tables = coded
    rows = table_rows(key, PARTS, tables)
    assert rows.rows.dtype == jnp.bfloat16
    expected = expected_rows(tables)
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 2, QUERIES, HEAD_DIM)).astype(np.float32)
    weights = rng.random((2, 2, QUERIES, expected.shape[1])).astype(np.float32)
    got = jax.jit(rows.scores)(query), jax.jit(rows.weighted_sum)(weights)
    wanted = (
        np.einsum("bkqh,knh->bkqn", query, expected),
        np.einsum("bkqn,knh->bkqh", weights, expected),
    )
    for found, right in zip(got, wanted, strict=True):
        assert found.dtype == jnp.float32
        assert relative_error(found, right) < 1e-5
