"""Imports point one way: vkq_jax -> pallas_kernels -> models -> vkq_apps."""

import ast
import graphlib
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


def rows_of_the_map() -> dict[str, list[str]]:
    """Modules by folder, "" for those outside, from the table in the docstring of vkq_jax."""
    table = ast.get_docstring(ast.parse((ROOT / "vkq_jax" / "__init__.py").read_text())) or ""
    rows = re.findall(r"^\| (?:`(\w+)`)? ?\|(.*)$", table, re.MULTILINE)
    return {folder: re.findall(r"`(\w+)`", names) for folder, names in rows}


def test_the_map_of_vkq_jax_has_each_of_its_modules_once():
    files = [path for path in (ROOT / "vkq_jax").rglob("*.py") if path.stem != "__init__"]
    modules = [(path.parent.name.removeprefix("vkq_jax"), path.stem) for path in files]
    named = [(folder, name) for folder, names in rows_of_the_map().items() for name in names]
    assert sorted(named) == sorted(modules)


def test_a_folder_of_vkq_jax_imports_only_from_those_above_it():
    *folders, outside = rows_of_the_map()
    order = [outside, *folders]
    offenders = []
    for path in (ROOT / "vkq_jax").glob("*/*.py"):
        below = set(order[order.index(path.parent.name) + 1 :])
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if module.startswith("vkq_jax.") and module.split(".")[1] in below:
                offenders.append((path.name, module))
    assert offenders == []


def folder_imports(package: str) -> dict[str, set[str]]:
    """The folders (and modules outside folders) of a package that each of them imports."""
    imports: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        place = path.relative_to(ROOT / package).with_suffix("").parts[0]
        found = imports.setdefault(place, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [module + alias.name for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
        found -= {place}
    return imports


@pytest.mark.parametrize("package", LAYERS)
def test_no_two_folders_of_a_package_need_each_other(package):
    imports = folder_imports(package)
    assert len(imports) > 3
    tuple(graphlib.TopologicalSorter(imports).static_order())  # else a CycleError with the folders
