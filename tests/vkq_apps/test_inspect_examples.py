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


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored(notebook):
    """A reader sees results without running anything: cells were run once, in their order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len(outputs) >= len(code) // 2
    assert {output["output_type"] for output in outputs} >= {"stream", "display_data"}
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@needs_checkpoint
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.ci
def test_runs(notebook, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(EXAMPLES)
    namespace = {"__name__": notebook.stem}
    try:
        for number, source in enumerate(code_cells(notebook)):
            exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), namespace)
    finally:
        plt.close("all")
