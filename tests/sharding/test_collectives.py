"""Compiled programs send between devices what tensor parallelism needs, and nothing else."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

import vkq_jax
from models.attached_tables import find_codes
from models.generation.decode_step import decode_step
from models.generation.prefill import prefill
from models.inputs.on_mesh import place_inputs
from models.sharding.placing import cache_shardings
from tests.sharding.cases import BATCH, inputs_of
from tests.sharding.test_layered import HEADS, LAYERS

_KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_COLLECTIVE = re.compile(rf" = \(?\w+\[([\d,]*)\].*? ({_KINDS})(?:-start)?\(")


def collectives(lowered: jax.stages.Lowered) -> Counter[str]:
    """How often each kind is called; in the loop over layers, once for all of them.

    Counts and positions of tokens, which are a few bytes, are not counted.
    """
    return Counter(
        kind
        for line in lowered.compile().as_text().splitlines()
        for shape, kind in _COLLECTIVE.findall(line)
        if not re.search(r"= \(?(s32|pred)\[", line)
    )


def programs(
    cases,
    name: str,
    mesh: str,
    quant: str | vkq_jax.PerLayer,
    batch: int = BATCH,
    tables: vkq_jax.CalibratedCodes | None = None,
) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """A prefill and the decode step behind it, not compiled yet."""
    model = cases.model(name, mesh)
    inputs = place_inputs(model.mesh, inputs_of(model, batch))
    settled, own_tables = find_codes(model, quant, tables)
    options = {"quant": settled, "cache_length": 24}
    _, cache = jax.eval_shape(
        lambda *arguments: prefill(*arguments[:2], tables=arguments[2], **options),
        model,
        inputs,
        own_tables,
    )
    placed = jax.tree.map(
        lambda x, sharding: x.update(sharding=sharding), cache, cache_shardings(model.mesh, cache)
    )
    step = jax.jit(decode_step).lower(model, jnp.zeros(batch, jnp.int32), placed)
    return prefill.lower(model, inputs, tables=own_tables, **options), step


# Queries go to all devices of a head, and results of each part to the device of their heads.
MERGED = {"all-gather": 1, "all-to-all": 1}
# Behind the embedding, attention and the MLP.
SUMS = {"all-reduce": 3}
FEATURES = {"all-gather": 1}


def test_two_sums_a_layer_whatever_the_codes(cases):
    for quant in ("none", "signs-1bit"):
        prefilling, decoding = programs(cases, "4 KV heads", "data=2,model=4", quant)
        assert collectives(prefilling) == SUMS | FEATURES
        assert collectives(decoding) == SUMS


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("quant", "coded", "found"),
    [
        ("vkq-1bit", {"all-reduce": 1}, {}),
        ("signs-1bit", {}, {}),
        ("none", {}, {}),
        ("calibquant-1bit", {}, {"all-reduce": 1}),
    ],
)
def test_parts_of_a_sequence_are_merged(cases, quant, coded, found):
    """Coding adds up what all query heads pay where tokens are sorted by attention, else nothing.

    Calibration at each step sends the range of a query's scores.
    """
    prefilling, decoding = programs(cases, "1 KV head", "model=8", quant, batch=1)
    assert collectives(prefilling) == Counter(SUMS) + Counter(coded)
    assert collectives(decoding) == Counter(SUMS) + Counter(MERGED) + Counter(found)


@pytest.mark.mesh
@pytest.mark.parametrize("quant", ["none", "vkq-1bit"])
@pytest.mark.parametrize(
    ("name", "mesh", "expected"),
    [
        ("8 KV heads", "model=8", SUMS),
        ("4 KV heads", "data=4,model=2", SUMS),
        ("sliding window", "data=2,model=4", SUMS),
        ("fused projections", "data=2,model=4", SUMS),
        ("8 KV heads", "data=8", {}),
        # Rows are added to a vocabulary that the mesh does not divide: it is split like others.
        ("2 KV heads, odd vocabulary", "data=4,model=2", SUMS),
        # New queries, keys and values go to the device of their sequence, and back.
        ("4 KV heads", "model=8", SUMS | {"all-to-all": 2}),
    ],
)
def test_every_mesh(cases, name, mesh, expected, quant):
    _, step = programs(cases, name, mesh, quant)
    assert collectives(step) == expected


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("quant", "name", "mesh", "batch", "expected"),
    [
        (LAYERS, "4 KV heads", "data=2,model=4", BATCH, SUMS),
        # Sequences are shared out instead of heads: queries, keys and values there, and back.
        (HEADS, "4 KV heads", "data=4,model=2", BATCH, SUMS | {"all-to-all": 4}),
        # Each device gets the new tokens of all heads, and all results: those of three groups in
        # one layer and of two in the other, of which one asks for the range of scores, too.
        (HEADS, "4 KV heads", "model=4", 1, {"all-gather": 3 + 5, "all-reduce": 3 + 2}),
        # Two sums for each piece of the pattern of layers, and one: a state stays where it is.
        ("signs-1bit", "linear attention", "data=2,model=4", BATCH, {"all-reduce": 4 * 2 + 1}),
        ("signs-1bit", "cross-attention", "data=2,model=4", BATCH, {"all-reduce": 5}),
    ],
)
def test_caches_of_several_parts(cases, quant, name, mesh, batch, expected):
    _, step = programs(cases, name, mesh, quant, batch)
    assert collectives(step) == expected
