"""`--quant`: presets, codes of one's own, and changes for keys, values and layers."""

import sys

import pytest

import models
import vkq_jax
from vkq_apps.terminal.codes_option import parse_codes
from vkq_jax.settings.presets import _PRESETS

MODULE = """
import vkq_jax

codes = vkq_jax.LevelCodes(bits=4)
mine = vkq_jax.KVQuantConfig(key=codes, value=vkq_jax.SignCodes())
layers = vkq_jax.per_layer("none", {1: mine})
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_codes_of_a_test.py").write_text(MODULE)
    (tmp_path / "broken_codes_of_a_test.py").write_text("1 / 0")
    yield "own_codes_of_a_test"
    sys.modules.pop("own_codes_of_a_test", None)


def test_a_preset_stays_a_name():
    assert parse_codes("vkq-1bit") == "vkq-1bit"


def test_layers_and_sides():
    expected = vkq_jax.per_layer("vkq-1bit", {0: "none", -1: "vkq-2bit", range(2, 4): "vkq-half"})
    assert parse_codes("vkq-1bit/0=none/-1=vkq-2bit/2-3=vkq-half") == expected
    signs, level = vkq_jax.presets["signs-1bit"], vkq_jax.presets["minmax-4bit"]
    assert parse_codes("signs-1bit/key=minmax-4bit") == vkq_jax.KVQuantConfig(
        key=level.key, value=signs.value
    )
    both = parse_codes("signs-1bit/value=minmax-4bit/0=none")
    assert both.default == vkq_jax.KVQuantConfig(key=signs.key, value=level.value)
    assert both.changes == ((0, None, "none"),)
    heads = vkq_jax.per_layer("vkq-1bit", {(5, 2): "none", ("all", 7): "vkq-2bit", 0: "none"})
    assert parse_codes("vkq-1bit/5.2=none/all.7=vkq-2bit/0=none") == heads
    run = vkq_jax.per_layer("vkq-1bit", {(range(2), range(1, 4)): "none"})
    assert parse_codes("vkq-1bit/0-1.1-3=none") == run


def test_a_plain_preset_is_its_settings_which_find_no_tables():
    calibrated = models.load("tiny").calibrated.codes
    plain = parse_codes("vkq-1bit:plain")
    assert plain == vkq_jax.presets["vkq-1bit"]
    assert calibrated.find(plain) is None
    assert calibrated.find(parse_codes("vkq-1bit")) is not None
    changed = parse_codes("signs-1bit/0=vkq-2bit:plain").changes
    assert changed == ((0, None, vkq_jax.presets["vkq-2bit"]),)


def test_codes_of_ones_own(here):
    level = vkq_jax.LevelCodes(bits=4)
    assert parse_codes(f"{here}:codes") == vkq_jax.KVQuantConfig(key=level, value=level)
    mine = vkq_jax.KVQuantConfig(key=level, value=vkq_jax.SignCodes())
    assert parse_codes(f"{here}:mine") == mine
    assert parse_codes(f"{here}:layers") == vkq_jax.per_layer("none", {1: mine})
    assert parse_codes(f"vkq-1bit/0={here}:mine").changes == ((0, None, mine),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vkq-1bt:plain", "got ModuleNotFoundError: No module named 'vkq-1bt'"),
        ("vkq-1bit:plan", "a preset is vkq-1bit or vkq-1bit:plain, got 'vkq-1bit:plan'"),
        ("vkq-1bt", "unknown preset 'vkq-1bt'.*did you mean 'vkq-1bit'"),
        ("vkq-1bit/none", "LAYER=NAME, LAYER.HEAD=NAME, key=... or value=..., got 'none'"),
        ("vkq-1bit/first=none", "a layer such as 0, -1 or 0-3, a head of it .* got 'first'"),
        ("vkq-1bit/all=none", "a layer such as 0, -1 or 0-3, a head of it .* got 'all'"),
        ("vkq-1bit/0.x=none", "a layer such as 0, -1 or 0-3, a head of it .* got '0.x'"),
        ("vkq-1bit/5-2=none", "a layer such as 0, -1 or 0-3, a head of it .* got '5-2'"),
        ("vkq-1bit/0=none/0=vkq-2bit", "0 is named twice"),
        ("vkq-1bit/0=nome", "unknown preset 'nome'"),
        ("vkq-1bit/key=minmax-4bit", "classes of the same shares"),
        ("no_such_module_here:mine", "got ModuleNotFoundError: No module named"),
        ("own_codes_of_a_test:other", "got AttributeError"),
        ("own_codes_of_a_test:number", r"a Quantizer or per_layer\(...\), got 3"),
        ("own_codes_of_a_test:layers/0=none", "has settings of its layers, got '0=none'"),
        ("broken_codes_of_a_test:mine", "got ZeroDivisionError"),
        (":", "ValueError: Empty module name"),
    ],
)
def test_what_names_no_codes_is_one_clear_error(here, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_codes(text)
    assert len(str(caught.value)) < 500


def test_a_registered_name_is_known_everywhere():
    settings = vkq_jax.register_preset("mine-of-a-test", vkq_jax.LevelCodes(bits=8))
    try:
        assert vkq_jax.presets["mine-of-a-test"] == settings
        assert vkq_jax.register_preset("mine-of-a-test", settings) == settings
        assert parse_codes("mine-of-a-test/0=none").default == "mine-of-a-test"
        with pytest.raises(ValueError, match="is a preset with other settings"):
            vkq_jax.register_preset("mine-of-a-test", vkq_jax.LevelCodes(bits=4))
    finally:
        _PRESETS.pop("mine-of-a-test")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a,b", "a:b", "-a", 3])
def test_a_name_that_options_could_not_hold_is_refused(name, as_users_run_it):
    with pytest.raises(ValueError, match="name: expected letters"):
        vkq_jax.register_preset(name, vkq_jax.presets["none"])
    with pytest.raises(ValueError, match="expected a KVQuantConfig or a Quantizer, got 3"):
        vkq_jax.register_preset("mine-of-a-test", 3)
