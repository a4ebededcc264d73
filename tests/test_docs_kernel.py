"""docs/kernel.md says what the kernels cover, in the words of the code."""

import types

import jax
import jax.numpy as jnp
import pytest

import vkq_jax
from docs.tables.pages import DOCS
from pallas_kernels.attention import support
from pallas_kernels.layout import layouts
from pallas_kernels.layout.tiled import untileable_reason
from pallas_kernels.quantize.quantize_bank import unfused_reason
from tests.support.caches import Shape, random_layer, with_score_map
from vkq_jax import KVQuantConfig, LevelCodes, ScoreCalibration, SignCodes
from vkq_jax.codes.dense import Dense
from vkq_jax.codes.level_codes import Granularity

SIGNS, BANK = SignCodes(scale_bits=8), {"head_dim": 64, "visual": ((300, (300, 3)),)}


def said(reason: str) -> bool:
    """Whether the kernel's page quotes this reason, whatever its lines."""
    return f'"{reason}"' in " ".join((DOCS / "kernel.md").read_text().split())


@pytest.mark.parametrize(
    "codes",
    [
        SignCodes(group_size=256),
        LevelCodes(group_size=64),
        LevelCodes(bits=8),
        LevelCodes(granularity=Granularity.PER_TOKEN),
        LevelCodes(table_dtype="float32"),
    ],
)
def test_codes_that_the_page_says_are_not_covered(codes):
    reason = untileable_reason(vkq_jax.quantize(jnp.ones((1, 1, 300, 64)), codes))
    assert reason
    assert said(reason)
    layer = random_layer(Shape(**BANK), KVQuantConfig(codes, SIGNS))[1]
    assert support.unsupported_reason(layer) == f"keys: {reason}"


@pytest.mark.parametrize(
    ("changes", "quant"),
    [
        ({"head_dim": 320}, KVQuantConfig(SIGNS, SIGNS)),
        ({}, KVQuantConfig(Dense(), Dense(), ScoreCalibration())),
        ({}, vkq_jax.presets["none"]),
        ({"visual": ()}, vkq_jax.presets["none"]),
    ],
)
def test_caches_that_the_page_says_are_not_covered(changes, quant):
    layer = random_layer(Shape(**BANK | changes), quant)[1]
    reason = support.unsupported_reason(layer)
    assert reason
    assert said(reason)


def test_dense_banks_that_the_page_says_are_not_covered():
    layer = random_layer(Shape(**BANK | {"head_dim": 96}), vkq_jax.presets["none"])[1]
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim > 1 else x, layer)
    assert said(str(support.unsupported_reason(narrow)))


def test_options_that_the_page_says_are_not_covered():
    calibrated = KVQuantConfig(SIGNS, SIGNS, ScoreCalibration())
    layer = random_layer(Shape(**BANK), calibrated)[1]
    assert said(str(support.unsupported_reason(layer, logits_soft_cap=50.0)))


def test_an_uncoded_bank_takes_no_static_score_map_either():
    layer = with_score_map(random_layer(Shape(**BANK), vkq_jax.presets["none"])[1], num_heads=4)
    assert support.unsupported_reason(layer) == "score calibration of an uncoded bank"


@pytest.mark.parametrize("preset", ["signs-1bit", "minmax-1bit"])
@pytest.mark.parametrize("head_dim", [*layouts.STORED_HEAD_DIMS, 80, 96, 160])
def test_caches_that_the_page_says_are_covered(preset, head_dim):
    layer = random_layer(Shape(**BANK | {"head_dim": head_dim}), vkq_jax.presets[preset])[1]
    assert support.unsupported_reason(layer) is None


@pytest.mark.parametrize(
    ("codes", "head_dim", "dtype"),
    [
        (LevelCodes(), 64, "bfloat16"),
        (SignCodes(centre="median"), 64, "bfloat16"),
        (SignCodes(group_size=256), 64, "bfloat16"),
        (SignCodes(table_dtype="float32"), 64, "bfloat16"),
        (SIGNS, 80, "bfloat16"),
        (SIGNS, 64, "float16"),
    ],
)
def test_codes_that_the_page_says_are_not_coded_by_the_kernel(codes, head_dim, dtype):
    x = jax.ShapeDtypeStruct((1, 300, 2, head_dim), dtype)
    index = jax.ShapeDtypeStruct((1, 300), jnp.int32)
    reason = unfused_reason(x, index, codes)
    assert reason
    assert said(reason)


def test_devices_that_the_page_names(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert said(str(support.device_reason()))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability="7.5")])
    assert said(str(support.device_reason()))
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability="8.0")])
    assert support.device_reason() is None
    assert said(str(support.untried_reason()))
