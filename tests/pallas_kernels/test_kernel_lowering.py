"""The fused kernel without a GPU: every instruction emulated, lowered to CUDA, taken by ptxas."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.launch import program_of
from pallas_kernels.isa.emulated_operations import EmulatedOperations
from pallas_kernels.isa.operations import Operations
from tests.pallas_kernels.kernel_cases import (
    CODES,
    stacked,
)
from tests.support.caches import (
    Shape,
    random_layer,
    random_starts,
)
from tests.support.compiling import lower_to_cuda, needs_ptxas, ptxas


def test_every_instruction_is_emulated():
    names = {name for name in dir(Operations) if not name.startswith("_")}
    own = [x for x in EmulatedOperations.__mro__ if x.__name__.startswith("Emulated")]
    assert names <= {name for x in own for name in vars(x)}


LAUNCHES = {
    "levels": (128, 1, "levels", TuningConfig(8, 4)),
    "levels in groups": (128, 4, "levels in groups", TuningConfig(4, 4, 2)),
    "signs": (128, 1, "signs:text8", TuningConfig(8, 4)),
    "signs, four queries": (128, 4, "signs", TuningConfig(8, 4, 4, queries=4)),
    "signs, eight queries": (128, 8, "signs", TuningConfig(12, 4, queries=8)),
    "four bits": (128, 2, "four bits and signs", TuningConfig(8, 4, queries=2)),
    "calibrated": (128, 1, "levels, calibrated", TuningConfig(8, 4, 2)),
    "calibrated in the launch": (128, 1, "groups, calibrated", TuningConfig(8, 4)),
    "calibrated, eight queries": (128, 8, "signs, calibrated", TuningConfig(8, 8, 2, queries=8)),
    "small heads": (64, 3, "signs, 16-bit scales, score bias", TuningConfig(4, 2, queries=3)),
    "dense": (128, 4, "dense", TuningConfig(8, 4, 2, queries=4)),
    "dense, small heads": (64, 1, "dense:text8", TuningConfig(4, 4)),
    "96 channels": (96, 1, "signs", TuningConfig(8, 4)),
    "256 channels": (256, 1, "signs", TuningConfig(16, 4)),
    "256 channels, four queries": (256, 4, "signs", TuningConfig(8, 4, 2, queries=4)),
}
# With a cap the body differs in its scores only, with a window in these and in what it loads.
LAUNCH_CASES = [(name, None, False) for name in LAUNCHES]
LAUNCH_CASES += [
    (name, 50.0, False) for name in ("levels in groups", "signs, eight queries", "96 channels")
]
LAUNCH_CASES += [
    (name, None, True)
    for name in (
        "levels in groups",
        "signs, four queries",
        "calibrated in the launch",
        "calibrated, eight queries",
        "dense",
        "256 channels",
    )
]


def launches_of(name, soft_cap=None, windowed=False):
    """Specs and their operands' shapes, text bank in bfloat16 or 8 bits and two layers included."""
    head_dim, per_kv_head, codes, tuning = LAUNCHES[name]
    codes, *text = codes.split(":")
    shape = Shape(head_dim=head_dim, num_heads=2 * per_kv_head, visual=((600, (600, 3)),))
    query, layer = random_layer(shape, CODES[codes])
    found = []

    def launch(spec, operands):
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in operands.items()}
        found.append((spec, shapes))
        return tuple(jnp.zeros(x.shape, x.dtype) for x in program_of(spec).results.values())

    cache = stacked(layer, 2, text_in_8_bits=bool(text))
    options = {"launch": launch, "tuning": tuning, "logits_soft_cap": soft_cap}
    if windowed:
        options["starts"] = random_starts(query, layer)
    jax.eval_shape(lambda: mosaic_gpu.attend_layer(query, cache, 1, **options))
    return found


@pytest.mark.parametrize(("name", "soft_cap", "windowed"), LAUNCH_CASES)
def test_lowers_to_cuda(name, soft_cap, windowed):
    for spec, operands in launches_of(name, soft_cap, windowed):
        assert spec.windowed == any("start" in operand for operand in operands) == windowed
        assert "mosaic_gpu" in lower_to_cuda(program_of(spec), operands)


@needs_ptxas
@pytest.mark.parametrize(("name", "soft_cap", "windowed"), LAUNCH_CASES)
def test_ptxas_accepts_every_instruction(name, soft_cap, windowed, tmp_path):
    for spec, operands in launches_of(name, soft_cap, windowed):
        assert "Used" in ptxas(program_of(spec), operands, tmp_path)
