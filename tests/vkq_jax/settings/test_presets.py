import inspect

import jax
import pytest

from vkq_jax import Dense, KVQuantConfig, LevelCodes, ScoreCalibration, SignCodes, presets, resolve


def test_presets_are_hashable_read_only_and_distinct():
    assert len(set(presets.values())) == len(presets)
    with pytest.raises(TypeError):
        presets["mine"] = presets["none"]


@pytest.mark.parametrize("name", presets)
def test_resolve(name):
    assert resolve(name) is resolve(presets[name]) is presets[name]


def test_resolve_names_the_known_presets():
    with pytest.raises(ValueError, match=r"unknown preset 'vkq-3bit', known are vkq-1bit, .*none"):
        resolve("vkq-3bit")
    with pytest.raises(ValueError, match="did you mean 'quantile-1bit'"):
        resolve("quantil-1bit")
    with pytest.raises(ValueError, match="name of a preset or a KVQuantConfig, got 1"):
        inspect.unwrap(resolve)(1)
    with pytest.raises(ValueError, match=r"got SignCodes.*; for both sides KVQuantConfig\(key="):
        inspect.unwrap(resolve)(SignCodes())
    for name in ("vkq-1bit/0=none", "vkq-1bit:plain"):
        with pytest.raises(ValueError, match=f"'{name}', known are .*command line's: here per_la"):
            resolve(name)


def test_the_mapping_names_the_known_presets():
    with pytest.raises(KeyError, match=r"unknown preset 'vkq1bit', .*did you mean 'vkq-1bit'"):
        presets["vkq1bit"]
    assert presets.get("vkq1bit") is None
    assert "vkq1bit" not in presets
    assert repr(presets).startswith("mappingproxy(presets: vkq-1bit, vkq-half, ")


def test_config_can_be_a_static_argument():
    config = KVQuantConfig(LevelCodes(), Dense(), ScoreCalibration())
    same = KVQuantConfig(LevelCodes(), Dense(), ScoreCalibration())
    traces = []
    identity = jax.jit(lambda x, config: traces.append(config) or x, static_argnums=1)
    identity(1.0, config)
    identity(1.0, same)
    assert len(traces) == 1


def test_config_is_checked():
    check = inspect.unwrap(KVQuantConfig.__post_init__)
    for field, value, message in [
        ("key", "vkq-1bit", r"key must be the settings .*\"vkq-1bit\"\]\.key, got 'vkq-1bit'"),
        ("value", None, "value must be the settings of one side"),
        ("calibration", True, "calibration must be a ScoreCalibration or None, got True"),
    ]:
        config = KVQuantConfig(LevelCodes(), Dense())
        object.__setattr__(config, field, value)
        with pytest.raises(ValueError, match=message):
            check(config)
