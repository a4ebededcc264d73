"""Imports point one way: vkq_jax -> pallas_kernels -> models -> vkq_apps."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["vkq_jax", "pallas_kernels", "models", "vkq_apps"]
FORBIDDEN = {"vkq_jax": {"flax", "transformers", "optax"}, "pallas_kernels": {"flax"}}


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_never_point_to_a_later_layer(layer):
    later = set(LAYERS[LAYERS.index(layer) + 1 :]) | FORBIDDEN.get(layer, set())
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    offenders = {
        str(path.relative_to(ROOT)): sorted(imported_packages(path) & later) for path in files
    }
    assert {path: names for path, names in offenders.items() if names} == {}


def test_torch_is_imported_where_pretrained_text_towers_are_read_only():
    importing = {
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        if "torch" in imported_packages(path)
    }
    readers = {"vkq_apps/evals/text_bed_model.py", "vkq_apps/training/gguf_files.py"}
    assert importing == readers


def test_the_map_of_vkq_jax_has_each_of_its_modules_once():
    modules = {path.stem for path in (ROOT / "vkq_jax").glob("*.py")} - {"__init__"}
    map_of_modules = ast.get_docstring(ast.parse((ROOT / "vkq_jax" / "__init__.py").read_text()))
    named = re.findall(r"`(\w+)`", map_of_modules or "")
    assert sorted(named) == sorted(modules)
