"""The wheel's content, and that it works where nothing else is installed."""

import importlib.util
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from models.extras import check_installed
from vkq_apps.cli.main import main
from vkq_apps.evals.synthetic import synthetic_tasks
from vkq_apps.terminal.errors import describe

ROOT = Path(__file__).parents[1]
PACKAGES = ("vkq_jax", "pallas_kernels", "models", "vkq_apps")
CORE = (
    "import sys, jax.numpy as jnp, pallas_kernels, vkq_jax\n"
    "x = vkq_jax.quantize(jnp.ones((2, 64, 64)), vkq_jax.presets['vkq-1bit'].key)\n"
    "assert not {'flax', 'transformers', 'typer', 'PIL', 'matplotlib'} & set(sys.modules)\n"
    "print(x.num_elements())"
)

needs_uv = pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv, which CI has")


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    code, _, errors = run("uv", "build", "--wheel", "--out-dir", folder, cwd=ROOT)
    assert code == 0, errors
    (found,) = folder.glob("*.whl")
    return found


def test_without_the_recipe_drawn_pictures_are_refused_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("vkq_apps.recipe.has_recipe", lambda: False)
    with pytest.raises(ValueError, match=r"part of a clone.*expected --data FORMAT=PATH"):
        synthetic_tasks()
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "--model", "tiny", "--out", str(tmp_path / "tables")])
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected --images FOLDER" in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named():
    line = describe(ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"))
    assert line == (
        'matplotlib is not installed: expected the extras of pip install "vkq-jax[all]"'
    )


def test_models_name_the_extra_that_is_missing(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: found(name) if name != "jinja2" else None
    )
    with pytest.raises(
        ModuleNotFoundError, match=r'jinja2.*pip install "vkq-jax\[models\]"'
    ) as error:
        check_installed()
    assert error.value.name == "jinja2"


@needs_uv
def test_the_wheel_has_what_users_run_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert "vkq_apps/cli/demo.png" in names
    checkpoint = {path.name for path in (ROOT / "models" / "tiny_checkpoint").iterdir()}
    assert {f"models/tiny_checkpoint/{name}" for name in checkpoint} <= set(names)
    top = {name.split("/")[0] for name in names}
    assert top == {*PACKAGES, metadata.split("/")[0]}
    left_out = ("training/", ".ttf", ".otf", "text_bed", "ablation", "tests/")
    assert [name for name in names if any(part in name for part in left_out)] == []
    core = {
        line.split(": ")[1].split(">")[0].split("<")[0]
        for line in text.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    assert core == {"jax", "jaxtyping", "numpy", "safetensors", "ml-dtypes"}
    assert "Project-URL" in text


@needs_uv
def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 25e6


@needs_uv
@pytest.mark.ci
def test_the_core_needs_jax_and_little_else(wheel, tmp_path):
    """`vkq_jax` and the kernels import without the extras; `vkq` says what it misses."""
    python = install(tmp_path, wheel)
    assert run(python, "-c", CORE, cwd=tmp_path) == (0, f"{2 * 64 * 64}\n", "")
    _, _, errors = run(python, "-c", "import models", cwd=tmp_path)
    assert 'models needs flax, which is not installed: pip install "vkq-jax[models]"' in errors
    code, out, errors = run(python.parent / "vkq", "demo", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert errors == (
        'vkq: typer is not installed: expected the extras of pip install "vkq-jax[all]"\n'
    )


@needs_uv
@pytest.mark.ci
def test_the_installed_package_runs_the_demo(wheel, tmp_path):
    python = install(tmp_path, f"{wheel}[all]")
    code, out, errors = run(python.parent / "vkq", "demo", "--json", cwd=tmp_path)
    assert code == 0, errors
    record = json.loads(out)
    assert record["answer"].strip() == record["answer_full_precision"].strip() == "$385.16"
    picture = ROOT / "examples" / "pictures" / "receipt.png"
    asked = ["--model", "tiny", "--image", picture, "--prompt", "what is the total?"]
    code, _, errors = run(python.parent / "vkq", "inspect", *asked, "--out", "plots", cwd=tmp_path)
    assert code == 0, errors
    # The wheel refuses in one line to do what only a clone can.
    code, _, errors = run(python.parent / "vkq", "eval", "--samples", "6", cwd=tmp_path)
    assert code == 2
    assert "expected --data FORMAT=PATH" in errors.splitlines()[-1]


def install(folder, what):
    """The Python of a new, empty environment with the package in it."""
    code, _, errors = run("uv", "venv", "--quiet", folder / "env")
    assert code == 0, errors
    python = folder / "env" / "bin" / "python"
    code, _, errors = run("uv", "pip", "install", "--quiet", "--python", python, what)
    assert code == 0, errors
    return python
