"""Cases of the fused kernel: codes, shapes, layers; the emulated kernel checked by the oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
import vkq_jax
import vkq_jax.attention.reference
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.attention.launch import emulated_launch
from tests.support.caches import (
    Shape,
    oracle,
    random_layer,
    relative_error,
)
from vkq_jax import KVQuantConfig, LevelCodes, ScoreCalibration, SignCodes
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dense import DenseTensor

attend = functools.partial(mosaic_gpu.attend_cache, launch=emulated_launch)

SIGNS = SignCodes(scale_bits=8)
BIASED = SignCodes(scale_bits=16, gamma=0.5, beta=0.25, rotation=None)
ROTATED = dataclasses.replace(BIASED, rotation="hadamard")
LEVELS = LevelCodes()
CODES = {
    "levels": KVQuantConfig(LEVELS, LEVELS),
    "levels in groups": KVQuantConfig(LevelCodes(group_size=512), LevelCodes(group_size=256)),
    "signs": KVQuantConfig(SIGNS, SIGNS),
    "signs, 16-bit scales, score bias": KVQuantConfig(BIASED, BIASED),
    "signs and levels": KVQuantConfig(SIGNS, LevelCodes(group_size=256)),
    "dense": vkq_jax.presets["none"],
    "levels, calibrated": vkq_jax.presets["calibquant-1bit"],
    "signs, calibrated": KVQuantConfig(BIASED, SIGNS, ScoreCalibration(tau1=0.5, tau2=1.5)),
    "rotated signs, score bias, calibrated": KVQuantConfig(
        ROTATED, SIGNS, ScoreCalibration(tau1=0.5, tau2=1.5)
    ),
    "groups, calibrated": KVQuantConfig(
        LevelCodes(group_size=256), SIGNS, ScoreCalibration(tau1=-0.5)
    ),
    "two bits": KVQuantConfig(LevelCodes(bits=2), LevelCodes(bits=2)),
    "four bits and signs": KVQuantConfig(LevelCodes(bits=4), SIGNS),
    "levels and four bits, calibrated": KVQuantConfig(
        LEVELS, LevelCodes(bits=4), ScoreCalibration()
    ),
    "levels and signs": KVQuantConfig(LevelCodes(group_size=256), SIGNS),
    "two bits and one, in groups": KVQuantConfig(
        LevelCodes(bits=2, group_size=256), LevelCodes(group_size=512), ScoreCalibration()
    ),
}
# head_dim, query heads per KV head, bank, tuning
SHAPES = {
    "one query head": (128, 1, (700, (700, 33)), TuningConfig(4, 2)),
    "four query heads, split": (128, 4, (1300, (1300, 0)), TuningConfig(8, 4, 2, queries=4)),
    "seven query heads, small heads": (64, 7, (600, (1, 513)), TuningConfig(4, 1, queries=3)),
    "seven query heads": (128, 7, (700, (700, 257)), TuningConfig(4, 2, queries=7)),
    "eight query heads, small heads": (64, 8, (600, (513, 77)), TuningConfig(4, 4, queries=8)),
    "one query head, small heads": (64, 1, (256, (256, 255)), None),
    "one query head, 96 channels": (96, 1, (600, (600, 33)), TuningConfig(4, 2)),
    "three query heads, 80 channels": (80, 3, (300, (300, 0)), TuningConfig(4, 1, 2, queries=3)),
    "one query head, 256 channels": (256, 1, (600, (600, 33)), TuningConfig(4, 2)),
    "four query heads, 256 channels, split": (
        256,
        4,
        (600, (600, 0)),
        TuningConfig(4, 2, 2, queries=4),
    ),
    "seven query heads, 256 channels": (256, 7, (300, (300, 257)), None),
    "four query heads, 160 channels": (160, 4, (300, (300, 33)), TuningConfig(4, 2, queries=4)),
    "one query head, 160 channels": (160, 1, (300, (300, 77)), TuningConfig(4, 1, 2)),
}


def layer_of(shape, codes, **changes):
    head_dim, per_kv_head, visual, tuning = SHAPES[shape]
    if any(getattr(side, "group_size", None) for side in (CODES[codes].key, CODES[codes].value)):
        tuning = tuning and dataclasses.replace(tuning, queries=1)
    shape = Shape(head_dim=head_dim, num_heads=2 * per_kv_head, visual=(visual,), **changes)
    return *random_layer(shape, CODES[codes]), tuning


def stacked(layer, num_layers, index=1, *, text_in_8_bits=False):
    """A cache of several layers, that layer among others; its text in bfloat16, or in 8 bits."""

    def stack(x):
        other = jnp.zeros_like(x)
        return jnp.stack([x if i == index else other for i in range(num_layers)])

    text = TextBank(
        stack(layer.text.key.astype(jnp.bfloat16)),
        stack(layer.text.value.astype(jnp.bfloat16)),
        layer.text.length,
    )
    if text_in_8_bits:
        text = text.in_8_bits()
    banks = []
    for bank in map(pallas_kernels.tile, layer.visual):
        key, value = bank.key, bank.value
        if isinstance(key, DenseTensor):
            key, value = (DenseTensor(x.values.astype(jnp.bfloat16)) for x in (key, value))
        banks.append(VisualBank(*jax.tree.map(stack, (key, value)), bank.length))
    none = jnp.zeros_like(layer.text.length)
    return KVCache(
        tuple(banks),
        text,
        position=none,
        calibration_skipped=none,
        quant=layer.quant,
        score_map=jax.tree.map(stack, layer.score_map),
    )


def check(query, layer, tuning=None, soft_cap=None, starts=None):
    # Compiled as a whole: alone, a new shape's operations are a hundred programs.
    fast = jax.jit(functools.partial(attend, tuning=tuning, logits_soft_cap=soft_cap))
    got = fast(query, layer, starts=starts)
    expected = oracle(query, layer, starts=starts, logits_soft_cap=soft_cap)
    assert np.isfinite(got.output).all()
    assert relative_error(got.output, expected.output) < 3e-4
    np.testing.assert_allclose(got.logsumexp, expected.logsumexp, rtol=3e-5, atol=3e-4)
    np.testing.assert_array_equal(got.calibration_skipped, expected.calibration_skipped)


def recorded(specs):
    """An emulated launch that notes its specs."""

    def launch(spec, operands):
        specs.append(spec)
        return emulated_launch(spec, operands)

    return launch
