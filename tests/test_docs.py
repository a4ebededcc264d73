"""The docs name what the code has, and their pictures can be drawn."""

import inspect
import json
import re
import runpy

import numpy as np
import pytest
from PIL import Image

import models
import pallas_kernels
import vkq_jax
from docs.tables.pages import DOCS
from models.families.registry import FAMILY_NAMES, MODEL_TYPES


@pytest.mark.ci
def test_the_layouts_are_drawn(tmp_path):
    script = runpy.run_path(str(DOCS / "draw_layouts.py"))
    script["main"](tmp_path / "layouts.png")
    with Image.open(tmp_path / "layouts.png") as drawn, Image.open(DOCS / "layouts.png") as kept:
        assert drawn.size == kept.size
    # Word 2e + r of row 2k + c holds position 64k + 32r + 8 (2c + e) + g, channels 32t...
    words = script["locate"]("keys", 256, 128).reshape(8, 32, 4, 2)
    np.testing.assert_array_equal(words[3, 4 * 5 + 2, 1], [64 + 32 + 16 + 5, 64])


@pytest.mark.ci
def test_the_answers_are_drawn(tmp_path):
    script = runpy.run_path(str(DOCS / "draw_answers.py"))
    script["main"](tmp_path / "answers.png")
    with Image.open(tmp_path / "answers.png") as drawn, Image.open(DOCS / "answers.png") as kept:
        assert drawn.size == kept.size
    assert script["points"]()["vkq-1bit"][0] < 1.3


def test_the_table_of_families_has_those_that_load():
    """And is what `docs/support.py` makes of results/support.json."""
    support = runpy.run_path(str(DOCS / "support.py"))
    measured = json.loads(support["FILE"].read_text())
    assert set(measured) <= set(MODEL_TYPES)
    readme = support["README"].read_text()
    inside = readme.partition(support["START"])[2].partition(support["END"])[0].strip()
    assert inside.splitlines() == support["table"](measured)
    named = [name for row in inside.splitlines()[2:] for name in row.split("|")[2].split(", ")]
    assert sorted(name.strip(" `") for name in named) == sorted(MODEL_TYPES)
    assert all(row["largest_logit_difference"] < 1e-4 for row in measured.values())


def test_an_unknown_family_is_refused_with_a_short_list(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "kosmos"}')
    with pytest.raises(NotImplementedError) as caught:
        models.read_config(tmp_path)
    assert len(str(caught.value)) < 400
    assert all(name in str(caught.value) for name in FAMILY_NAMES)


@pytest.mark.parametrize("package", [vkq_jax, models, pallas_kernels], ids=lambda x: x.__name__)
def test_docstrings_of_public_functions_name_their_arguments(package):
    public = {name: getattr(package, name) for name in package.__all__}
    functions = {name: f for name, f in public.items() if callable(f) and not isinstance(f, type)}
    assert functions
    for name, function in functions.items():
        if function.__module__ == "collections.abc":  # an alias of a type
            continue
        words = set(re.findall(r"\w+", function.__doc__ or ""))
        parameters = inspect.signature(function).parameters
        assert [each for each in parameters if each not in words] == [], name


@pytest.mark.parametrize("package", [vkq_jax, models, pallas_kernels], ids=lambda x: x.__name__)
def test_each_argument_begins_a_line(package):
    """Two on one line would be one entry of the site, named after the first."""
    known = {name: getattr(package, name) for name in package.__all__}
    for name, each in known.items():
        _, found, entries = (inspect.getdoc(each) or "").partition("Attributes:\n")
        if not found:
            _, found, entries = (inspect.getdoc(each) or "").partition("Args:\n")
        if not found or not (isinstance(each, type) or inspect.isfunction(each)):
            continue
        entries = entries.partition("\n\n")[0]
        begun = set(
            re.findall(r"\w+", " ".join(re.findall(r"^    (\S.*?):", entries, re.MULTILINE)))
        )
        inside = set(re.findall(r"[.)] (\w+): ", entries.replace("\n", " ")))
        parameters = inspect.signature(each).parameters
        assert inside & set(parameters) <= begun, name


def test_readme_is_short():
    lines = (DOCS.parent / "README.md").read_text().splitlines()
    assert len([line for line in lines if line and not line.startswith("<!--")]) <= 116
