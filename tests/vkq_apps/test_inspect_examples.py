"""The notebooks in examples/ run as they are."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from models.loading import TINY

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

needs_checkpoint = pytest.mark.skipif(
    not (TINY / "config.json").is_file(), reason=f"no embedded checkpoint in {TINY.name}"
)


def code_cells(notebook):
    """Sources of the code cells, without IPython's magics."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            yield "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"quickstart", "your_own_codes"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_the_machine_that_ran_it_is_stored(notebook):
    text = notebook.read_text(encoding="utf-8")
    for sign in ("/home/", "/root/", "/tmp/", "/work/", "Users\\\\"):
        assert sign not in text


@needs_checkpoint
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(notebook):
    matplotlib.use("Agg")
    namespace = {"__name__": notebook.stem}
    try:
        for number, source in enumerate(code_cells(notebook)):
            exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), namespace)
    finally:
        plt.close("all")
