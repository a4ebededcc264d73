"""Launches that multiply by the model's tables, emulated on the CPU against float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import mosaic_gpu, table_specs
from pallas_kernels.attention.kernel_spec import BOOK, KernelSpec
from pallas_kernels.attention.launch import emulated_launch, program_of
from pallas_kernels.attention.table_specs import Dictionary, FoldSpec, JoinSpec
from tests.pallas_kernels.kernel_cases import recorded
from tests.support.caches import Shape, in_bfloat16, oracle, random_layer, relative_error
from tests.support.compiling import lower_to_cuda, needs_ptxas, ptxas
from vkq_jax.settings.presets import calibrated_presets

METRIC = calibrated_presets["vkq-1bit"][1]
LAYER = 1  # of two
WIDE = Dictionary("class0_", 192, 256)
NARROW = Dictionary("class2_", 40, 64)
SHAPES = {
    "dictionaries": {"head_dim": 64, "dictionaries": (WIDE, NARROW), "centred": True},
    "channels in columns": {
        "head_dim": 128,
        "dictionaries": (dataclasses.replace(NARROW, by_columns=True), WIDE),
        "centroids": 256,
    },
    "a codebook": {"head_dim": 256, "centroids": 130},
    "few centroids": {"head_dim": 96, "dictionaries": (NARROW,), "centroids": 16, "centred": True},
}
OF_ALL = {"outer": 2, "layers": 2, "batch": 3, "kv_heads": 2, "queries": 3}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tables_of(spec, rng):
    """Operands with the tables; each head's matrix [N, H] and centre [Z, B, K, H] in float64."""
    size, heads = spec.head_dim, spec.kv_heads
    found, rows = {}, []

    def normal(*shape, dtype=jnp.bfloat16):
        return np.asarray(jnp.asarray(rng.normal(size=shape), dtype))

    for part in spec.dictionaries:
        matrix = normal(spec.layers * heads, size, size)
        channel = rng.integers(0, size, (spec.layers * heads, part.virtual)).astype(np.int32)
        weight = normal(spec.layers * heads, part.virtual, dtype=jnp.float32)
        names = ("matrix", "channel", "weight")
        arrays = (matrix, channel, weight)
        found |= {f"{part.part}{x}": y for x, y in zip(names, arrays, strict=True)}
        own = matrix.swapaxes(-1, -2) if part.by_columns else matrix
        own = np.take_along_axis(own.astype(np.float64), channel[..., None], axis=1)
        own = own * weight[..., None]
        rows.append(np.pad(own, [(0, 0), (0, part.size - part.virtual), (0, 0)]))
    if spec.centroids:
        book = found["book"] = normal(spec.layers * heads, spec.centroids, size)
        rows.append(np.pad(book.astype(float), [(0, 0), (0, BOOK - spec.centroids), (0, 0)]))
    centre = None
    if spec.centred:
        found["centre"] = normal(spec.outer * spec.layers * spec.batch * heads, size)
        centre = found["centre"].astype(float)
        centre = centre.reshape(spec.outer, spec.layers, spec.batch, heads, size)[:, LAYER]
    found["layer"] = np.array([LAYER], np.int32)
    return found, np.concatenate(rows, 1)[LAYER * heads :][:heads], centre


def run(spec, operands):
    return emulated_launch(spec, jax.tree.map(jnp.asarray, operands))


def of_rows(spec, x):
    return x.reshape(spec.outer, spec.batch, spec.kv_heads, spec.queries, -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_queries_are_multiplied_by_tables(shape, rng):
    spec = FoldSpec(**OF_ALL, **SHAPES[shape])
    operands, rows, centre = tables_of(spec, rng)
    query = operands["query"] = rng.normal(size=(spec.rows, spec.head_dim)).astype(np.float32)
    products, *shift = run(spec, operands)
    expected = np.einsum("zbkqh,knh->zbkqn", of_rows(spec, query), rows)
    assert relative_error(of_rows(spec, products), expected) < 1e-5
    if centre is None:
        assert not shift
    else:
        expected = np.einsum("zbkqh,zbkh->zbkq", of_rows(spec, query), centre)
        np.testing.assert_allclose(shift[0], expected.reshape(-1), rtol=1e-4, atol=1e-4)


def join_spec(shape, direct, splits, *, alike=False):
    own = OF_ALL | SHAPES[shape]
    dictionaries = [dataclasses.replace(x, by_columns=False) for x in own.get("dictionaries", ())]
    own["dictionaries"] = tuple(dictionaries)
    packed = not dictionaries
    return JoinSpec(**own, splits=splits, direct=direct or packed, packed=packed, alike=alike)


@pytest.mark.parametrize(("direct", "splits"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_joined(shape, direct, splits, rng, monkeypatch):
    """Tile by tile, with the same weights by centroid in all parts; all tiles in a thread block."""
    if direct:
        monkeypatch.setattr(table_specs, "_THREAD_BLOCKS", 0)
    spec = join_spec(shape, direct, splits, alike=not direct)
    assert spec.head_blocks == (1 if direct else 2)
    operands, rows, centre = tables_of(spec, rng)
    names = ([""] if spec.direct else []) + [x.part for x in spec.dictionaries]
    total = np.full((splits, len(names), spec.rows), -np.inf)
    weighed = np.zeros((spec.rows, spec.products))
    shares = []
    for number, name in enumerate(names):
        logsumexp = rng.normal(size=(splits, spec.rows))
        logsumexp[:, 5] = -np.inf  # a query that sees nothing
        logsumexp[0, number::7] = -np.inf
        operands[f"{name}logsumexp"] = logsumexp.astype(np.float32).reshape(-1)
        total[:, number] = logsumexp
    with np.errstate(invalid="ignore", divide="ignore"):
        expected_total = np.log(np.exp(total).sum((0, 1)))
        weights = np.where(np.isinf(total), 0.0, np.exp(total - expected_total))
    expected, first = np.zeros((spec.rows, spec.head_dim)), 0
    for number, name in enumerate(names):
        size = {x.part: x.size for x in spec.dictionaries}.get(name, spec.head_dim)
        output = rng.normal(size=(splits, spec.rows, size)).astype(np.float32)
        operands[f"{name}output"] = output.reshape(-1, size)
        joined = (weights[:, number, :, None] * output).sum(0)
        if name or (spec.packed and not spec.dictionaries):
            shares.append(weights[:, number].sum(0))
            if spec.centroids:
                if len(shares) == 1 or not spec.alike:
                    mass = rng.random(size=(splits, spec.rows, BOOK)).astype(np.float32)
                    mass[..., spec.centroids :] = 0.0
                operands[f"{name}value_mass"] = mass.reshape(-1, BOOK)
                weighed[:, -BOOK:] += (weights[:, number, :, None] * mass).sum(0)
        if name:
            weighed[:, first : first + size] = joined
            first += size
        else:
            expected += joined
    expected = of_rows(spec, expected) + np.einsum("zbkqn,knh->zbkqh", of_rows(spec, weighed), rows)
    if centre is not None:
        expected += of_rows(spec, sum(shares)) * centre[:, :, :, None]
    output, logsumexp = run(spec, operands)
    assert relative_error(of_rows(spec, output), expected) < 1e-5
    np.testing.assert_allclose(logsumexp, expected_total, rtol=1e-5, atol=1e-5)


@pytest.mark.ci
def test_tables_of_several_models():
    """Mapped tables take a launch each, and are those of the oracle; keys have a metric."""
    shape = Shape(head_dim=64, num_heads=2, num_kv_heads=1, visual=((70, (70, 3)),))
    pairs = [in_bfloat16(random_layer(shape, METRIC, seed)) for seed in range(2)]
    specs = []
    attend = functools.partial(mosaic_gpu.attend_cache, launch=recorded(specs))
    got = jax.jit(jax.vmap(attend))(*jax.tree.map(lambda *x: jnp.stack(x), *pairs))
    assert {type(spec) for spec in specs} == {FoldSpec, KernelSpec, JoinSpec}
    for number, pair in enumerate(pairs):
        expected = oracle(*pair)
        assert relative_error(got.output[number], expected.output) < 3e-4


def specs_of(shape):
    return [FoldSpec(**OF_ALL, **SHAPES[shape]), join_spec(shape, True, 2)]


def operands_of(spec):
    rng = np.random.default_rng(0)
    found, *_ = tables_of(spec, rng)
    shapes = {"query": (spec.rows, spec.head_dim)}
    if isinstance(spec, JoinSpec):
        parts = {"": spec.head_dim} | {x.part: x.size for x in spec.dictionaries}
        rows = spec.splits * spec.rows
        shapes = {f"{name}output": (rows, size) for name, size in parts.items()}
        shapes |= {f"{name}logsumexp": (rows,) for name in parts}
        shapes |= {f"{name}value_mass": (rows, BOOK) for name in parts if spec.centroids}
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in found.items()} | {
        name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_lowers_to_cuda(shape):
    for spec in specs_of(shape):
        assert "mosaic_gpu" in lower_to_cuda(program_of(spec), operands_of(spec))


@needs_ptxas
@pytest.mark.parametrize("shape", SHAPES)
def test_ptxas_accepts_every_instruction(shape, tmp_path):
    for spec in specs_of(shape):
        assert "Used" in ptxas(program_of(spec), operands_of(spec), tmp_path)
