"""Commands, code and error messages in README.md and docs/ are those of the library."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup

from vkq_apps.cli.app import load_command
from vkq_apps.cli.examples import EXAMPLES
from vkq_apps.terminal import hosts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SKETCHES = {"adding_a_family.md", "scaling_out.md", "video.md"}
"""Pages whose code is excerpts, with names from elsewhere."""

NOT_OURS = {"export", "git", "hf", "jupyter", "lmms-eval", "mkdocs", "pip", "pyright", "ruff"}
"""Commands of other projects, which are not checked."""

OF_THE_SHELL = {"done", "for"}
"""Words around commands in a loop."""

WITH_A_VALUE = ("--group", "--with", "--extra")


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PACKAGES = ("models", "vkq_jax", "pallas_kernels", "vkq_apps")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def code_cells(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def has(owner, name):
    """Whether a module, by its name, has a part or module of that name."""
    return hasattr(importlib.import_module(owner), name) or bool(
        importlib.util.find_spec(f"{owner}.{name}")
    )


def commands(page):
    """Each command of a page's shell blocks as a list of words, without what starts it."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").replace("&&", "\n").splitlines():
            words = shlex.split(line, comments=True)
            while words and (words[0] in ("nice", "uv", "run", "-n", "10") or "=" in words[0]):
                words = words[1:]
                while words and words[0] in WITH_A_VALUE:
                    words = words[2:]
            if words[:1] == ["compute-sanitizer"]:
                words = words[words.index("vkq") :]
            if words:
                yield words


def parse(words):
    """Reads the arguments of a `vkq` command as the command itself does."""
    name, *arguments = words
    command = load_command(name)
    if isinstance(command, TyperGroup):
        if not arguments or arguments[0] not in command.commands:
            raise ValueError(f"vkq {name}: expected one of {list(command.commands)}")
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_take_the_arguments_that_the_page_gives(page, monkeypatch):
    # Pages have commands for more devices than there are here.
    monkeypatch.setattr(hosts, "make_mesh", lambda text: None)
    for words in commands(page):
        if words[0] == "vkq":
            parse(words[1:])
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words
        elif words[0] in ("python", "pytest"):
            for word in words[1:]:
                assert not word.endswith(".py") or (ROOT / word).is_file(), word
        else:
            assert words[0] in NOT_OURS | OF_THE_SHELL or (ROOT / words[0]).is_file(), words


def test_examples_in_the_help_are_commands():
    for name, lines in EXAMPLES.items():
        assert all(line.split("#")[0].startswith("vkq ") for line in lines), name
        for line in lines:
            parse(shlex.split(line)[1:])


def test_a_wrong_option_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        parse(["demo", "--wrong"])


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_code_names_what_the_packages_export(page):
    """Attributes of packages, and what is imported from them, in the code of pages exist."""
    notebook = page.suffix == ".ipynb"
    code = ["".join(cell["source"]) for cell in code_cells(page)] if notebook else None
    for block in code or blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            owner = getattr(getattr(node, "value", None), "id", None)
            if isinstance(node, ast.Attribute) and owner in PACKAGES:
                assert has(owner, node.attr), f"{owner}.{node.attr}"
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
                for alias in node.names:
                    assert has(node.module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in SKETCHES and blocks(page, "python")],
    ids=lambda page: page.stem,
)
def test_code_runs(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": page.stem}
    for number, source in enumerate(blocks(page, "python")):
        if not source.startswith("# not run"):
            exec(compile(source, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda x: x.stem)
def test_notebooks_print_what_they_show(file, monkeypatch, capsys):
    """The code prints what the committed outputs hold; measured numbers depend on the machine."""

    def without_numbers(text):
        return re.sub(r"(?<![$\d.])\d[\d.]*(e[+-]\d+)?", "#", text)  # sums of money are answers

    monkeypatch.chdir(file.parent)
    namespace = {"__name__": file.stem}
    assert code_cells(file)
    for number, cell in enumerate(code_cells(file)):
        exec(compile("".join(cell["source"]), f"{file.name}, cell {number}", "exec"), namespace)
        kept = [each for each in cell["outputs"] if each.get("name") == "stdout"]
        shown = "".join("".join(each["text"]) for each in kept)
        assert without_numbers(capsys.readouterr().out) == without_numbers(shown)


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
    code = code_cells(notebook)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len(outputs) >= len(code) // 2
    assert {output["output_type"] for output in outputs} >= {"stream", "display_data"}
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def literal_texts():
    """Every text of the packages' sources, its formatted parts left out."""
    for package in ("vkq_jax", "pallas_kernels", "models", "vkq_apps"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_messages_of_the_page_on_errors_are_real():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [
        part.strip()
        for message in re.findall(r"^### `(.+)`$", page, re.MULTILINE)
        for part in message.split("...")
        if part.strip()
    ]
    assert len(quoted) > 20
    texts = "\n".join(literal_texts())
    assert [part for part in quoted if part not in texts] == []
