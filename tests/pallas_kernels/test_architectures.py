"""GPUs that the kernels have not been run on: what is assembled for them, and who takes it."""

import dataclasses
import types

import jax
import pytest

import pallas_kernels
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.attention.kernel_spec import KernelSpec, TuningConfig
from pallas_kernels.attention.launch import program_of
from pallas_kernels.attention.regions import Regions
from pallas_kernels.attention.tuning_configs import choose_tuning, keeping_tuning
from pallas_kernels.isa.architectures import ARCHITECTURES
from tests.pallas_kernels import (
    kernel_cases,
    test_dictionary_kernel,
    test_kernel_lowering,
    test_quantize_bank,
)
from tests.support.caches import Shape, random_layer
from tests.support.compiling import lower_to_cuda, needs_ptxas, ptxas

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
# A single query as bytes: the second one of the team is not there.
ONE_AS_BYTES = TuningConfig(4, 2, queries=2)


def launch(name):
    if name == "coding of values":
        return test_quantize_bank.program_of("values")
    ((spec, operands),) = test_kernel_lowering.launches_of(name.removesuffix(" as bytes"))
    if name.endswith(" as bytes"):
        spec = dataclasses.replace(spec, tuning=ONE_AS_BYTES)
    return program_of(spec), operands


@needs_ptxas
@pytest.mark.parametrize(
    "name", ["signs", "signs as bytes", "signs, four queries", "dense", "coding of values"]
)
def test_ptxas_assembles_each_path_for_every_architecture(name, tmp_path):
    """Products of bits too, which it writes out where tensor cores have none."""
    assert "Used" in ptxas(*launch(name), tmp_path, TARGETS)


@needs_ptxas
@pytest.mark.ci  # half a minute
@pytest.mark.parametrize("case", test_dictionary_kernel.LAUNCHES[1::2])
def test_ptxas_assembles_launches_with_tables_for_every_architecture(case, tmp_path):
    """The tables are a codebook, or learned dictionaries; four queries."""
    for program, operands in test_dictionary_kernel.launches_of(*case):
        assert "Used" in ptxas(program, operands, tmp_path, TARGETS)


@pytest.mark.parametrize("capability", ["8.0", "12.0"])
def test_mosaic_gpu_lowers_for_other_architectures(capability):
    """The module says for which architecture it was made; none is refused."""
    program, operands = launch("signs as bytes")
    here, hopper = (lower_to_cuda(program, operands, x) for x in (capability, "9.0"))
    assert "mosaic_gpu" in here
    assert here != hopper


def test_one_query_as_bytes_equals_the_oracle():
    shape = Shape(head_dim=128, num_heads=2, visual=((600, (600, 33)),))
    query, layer = random_layer(shape, kernel_cases.CODES["signs"])
    kernel_cases.check(query, layer, ONE_AS_BYTES)


def test_one_query_of_dictionary_codes_as_bytes_equals_the_oracle():
    query, layer = test_dictionary_kernel.layer_of(64, 1, "vkq-1bit")
    got = test_dictionary_kernel.attend(query, layer, tuning=ONE_AS_BYTES)
    test_dictionary_kernel.check(got, test_dictionary_kernel.oracle(query, layer))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_thread_block_has_the_shared_memory_it_needs(architecture):
    for heads, queries, positions in ((512, 1, 32768), (32, 4, 32768), (1024, 4, 3328), (64, 8, 9)):
        for head_dim in (64, 128, 256):
            for coding in (Coding(), Coding(codebook=True)):
                if head_dim == 256 and coding.codebook:
                    continue
                packed = Packed(positions, coding, coding)
                tuning = choose_tuning(heads, queries, head_dim, (packed,), (), architecture)
                spec = KernelSpec(heads, 1, queries, head_dim, (packed,), tuning=tuning)
                assert 4 * Regions.of((spec,)).words <= architecture.shared_bytes
                assert spec.grid * spec.block_teams >= spec.teams
                assert spec.uses_bytes == (queries > 1 or not architecture.multiplies_bits)
                if not spec.uses_bytes:
                    kept = keeping_tuning(tuning, packed, head_dim, architecture)
                    assert kept is None or kept.splits == 1


@pytest.fixture
def card(monkeypatch):
    """As if there were a GPU that the kernels have not been run on."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    device = types.SimpleNamespace(compute_capability="8.6")
    monkeypatch.setattr(jax, "devices", lambda *_: [device])


def test_an_untried_card_takes_the_kernel_on_request(card):
    layer = random_layer(Shape(head_dim=64), kernel_cases.CODES["signs"])[1]
    assert pallas_kernels.choose_implementation(None, layer) == "xla"
    assert pallas_kernels.choose_implementation("mosaic_gpu", layer) == "mosaic_gpu"
    said = "not run on such a card yet (compute capability 8.6)"
    first, second, *_, last = pallas_kernels.explain(layer).splitlines()
    assert first == f"mosaic_gpu: on request, {said}"
    assert second == "xla: taken"
    assert last.startswith("warning: ")
    assert last.endswith(f'{said}; implementation="mosaic_gpu" asks for it')
    assert pallas_kernels.slowdown_reason(layer, "mosaic_gpu") is None
    assert pallas_kernels.slowdown_reason(layer, "xla").endswith("xla was asked for")


def test_an_untried_card_codes_for_the_kernel_on_request(card):
    arguments = (*test_quantize_bank.layer(64, 33, (33, 4)), kernel_cases.CODES["signs"])
    for implementation, kind in ((None, "SignTensor"), ("mosaic_gpu", "TiledSigns")):
        backend = pallas_kernels.Backend(implementation)
        bank = jax.eval_shape(lambda b=backend: b.quantize(*arguments, tables=None))
        assert type(bank.key).__name__ == kind
    key, value, index, _, quant = arguments
    said = pallas_kernels.explain_coding(key, value, index, quant).splitlines()
    assert said[0].startswith("mosaic_gpu: on request, not run on such a card yet")
    assert said[1] == "xla: taken"
