"""Mutation tests: do the tests that reach a line notice when the line is changed?

    COVERAGE_FILE=runs/coverage uv run --with pytest-cov pytest -n 2 --cov=vkq_jax --cov=models \
      --cov-context=test --cov-report= --junitxml=runs/times.xml
    uv run --with cosmic-ray --with coverage python tests/mutation.py plan vkq_jax models
    python tests/mutation.py run --workers 2

The first command notes which test reaches which line, `plan` draws cosmic-ray's mutants and names
the fastest tests that reach each, `run` needs nothing but pytest. A mutant that survives becomes a
test, or it is equivalent. A mutant counts as killed only by tests that pass without it.
"""

import ast
import concurrent.futures
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "site")
# Without its decorator a dataclass only breaks the import.
SKIPPED_OPERATORS = ("core/NoOp", "core/RemoveDecorator", "core/VariableReplacer")
# The operator that is hardest to notice in the place of another.
BINARY = "core/ReplaceBinaryOperator_"
PAIRS = (
    "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul BitAnd_BitOr BitOr_BitAnd"
)
PAIRS += " BitXor_BitOr LShift_RShift RShift_LShift"
app = typer.Typer(add_completion=False)


@app.command()
def plan(
    paths: list[str],
    coverage: Path = Path("runs/coverage"),
    times: Path = Path("runs/times.xml"),
    sample: Annotated[int, typer.Option(help="Mutants of each module.")] = 5,
    seed: int = 0,
    seconds: Annotated[float, typer.Option(help="Tests of one mutant take about that long.")] = 90,
    out: Path = Path("runs/mutants.json"),
) -> None:
    """Draws the mutants of the modules and folders, and the tests of each."""
    from coverage import CoverageData  # pyright: ignore[reportMissingImports]

    data = CoverageData(str(coverage))
    data.read()
    files = {str(Path(name).resolve().relative_to(ROOT)): name for name in data.measured_files()}
    seconds_of = test_seconds(times)
    planned = []
    for module in modules(paths):
        contexts = data.contexts_by_lineno(files[module]) if module in files else {}
        for mutant in mutants(module, sample, seed):
            reaching = {name.partition("|")[0] for name in contexts.get(mutant["line"], ())} - {""}
            mutant["tests"] = fastest(reaching, seconds_of, seconds)
            planned.append(mutant)
    random.Random(seed).shuffle(planned)  # a run that is cut short has seen all modules
    out.write_text(json.dumps(planned))
    print(
        f"{len(planned)} mutants drawn, {sum(not mutant['tests'] for mutant in planned)} untested"
    )


@app.command()
def run(
    planned: Path = Path("runs/mutants.json"),
    workers: int = 2,
    minutes: Annotated[float, typer.Option(help="No mutant is begun later.")] = 600.0,
    out: Path = Path("runs/survivors.txt"),
) -> None:
    """Runs each mutant's tests in a copy of the tree and writes the mutants that survive."""
    todo = json.loads(planned.read_text())
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder, open(out, "w") as report:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(workers):
            trees.put(Path(shutil.copytree(ROOT, Path(folder) / str(number), ignore=LEFT_OUT)))
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(outcome, mutant, trees, Path(folder), end) for mutant in todo]
            for mutant, job in zip(todo, jobs, strict=True):
                mutant["outcome"] = job.result()
                if mutant["outcome"] in ("survived", "untested", "broken"):
                    report.write(described(mutant))
                    report.flush()
        killers = sorted({m["outcome"] for m in todo} - {"survived", "untested", "left", "broken"})
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            parts = [killers[n::workers] for n in range(workers)]
            jobs = [pool.submit(unchanged, part, trees, Path(folder)) for part in parts]
            failing = {name for job in jobs for name in job.result()}
        for mutant in todo:
            if mutant["outcome"] in failing:
                mutant["outcome"] = f"unknown: without the change, too, fails {mutant['outcome']}"
                report.write(described(mutant))
        kinds = ("survived", "untested", "left", "broken", "unknown")
        counts = {kind: sum(m["outcome"].startswith(kind) for m in todo) for kind in kinds}
        counts["killed"] = len(todo) - sum(counts.values())
        report.write(f"{counts}\n")
    print(counts)


def described(mutant: dict) -> str:
    """A mutant's place and difference."""
    lines = [f"{mutant['outcome']} {mutant['module']}:{mutant['line']}", *mutant["diff"]]
    return "".join(f"{line}\n" for line in lines)


def modules(paths: list[str]) -> list[str]:
    """The Python files of `paths`, relative to the root."""
    files = [
        file
        for path in paths
        for file in ([ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py")))
    ]
    return [str(file.relative_to(ROOT)) for file in files]


def mutants(module: str, sample: int, seed: int) -> list[dict]:
    """A sample of a module's mutants: the line, the difference and the whole source of each."""
    from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]
    from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
    from cosmic_ray.plugins import (  # pyright: ignore[reportMissingImports]
        get_operator,
        operator_names,
    )

    draw = random.Random(f"{seed} {module}")
    source = (ROOT / module).read_text()
    nodes = list(ast_nodes(get_ast(source)))
    types = annotation_places(source)
    # A place may have several mutants of a kind (< becomes <=, ==, ...): one of them is drawn.
    places: dict[tuple, list] = {}
    for name in operator_names():
        if name.startswith(SKIPPED_OPERATORS) or get_operator(name).arguments():
            continue
        if name.startswith(BINARY) and name.removeprefix(BINARY) not in PAIRS.split():
            continue
        operator = get_operator(name)()
        found = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(found):
            if not any(first <= start < last for first, last in types):
                kind = name.partition("_")[0]
                places.setdefault((start, kind), []).append((operator, occurrence))
    kept = []
    for place in draw.sample(sorted(places), len(places)):
        if len(kept) == sample:
            break
        mutated = mutate_code(source, *draw.choice(places[place]))
        pairs = zip(source.splitlines(), (mutated or source).splitlines(), strict=False)
        diff = [
            f"{sign} {text}"
            for both in pairs
            if both[0] != both[1]
            for sign, text in zip("-+", both, strict=True)
        ]
        if diff:
            kept.append(
                {"module": module, "line": place[0][0], "diff": diff[:6], "source": mutated}
            )
    return kept


def annotation_places(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the types of arguments, results and fields begin and end: (line, column) pairs."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            part = getattr(node, field, None)
            if part is not None:
                end = (part.end_lineno, part.end_col_offset)
                found.append(((part.lineno, part.col_offset), end))
    return found


def test_seconds(times: Path) -> dict[str, float]:
    """How long each test took: pytest's name -> seconds."""
    seconds = {}
    for case in ElementTree.parse(times).iter("testcase"):
        place = case.get("classname", "").replace(".", "/")
        seconds[f"{place}.py::{case.get('name')}"] = float(case.get("time", 0))
    return seconds


def fastest(tests: set[str], seconds_of: dict[str, float], seconds: float) -> list[str]:
    """The fastest of `tests`, up to 40, that together take about `seconds`."""
    kept, total = [], 0.0
    for name in sorted(tests, key=lambda name: (seconds_of.get(name, 10.0), name)):
        total += seconds_of.get(name, 10.0)
        if kept and (total > seconds or len(kept) == 40):
            break
        kept.append(name)
    return kept


def outcome(mutant: dict, trees: queue.Queue[Path], folder: Path, end: float) -> str:
    """The test that a mutant fails, or survived, untested, broken, or left for want of time."""
    if not mutant["tests"]:
        return "untested"
    if time.monotonic() > end:
        return "left"
    tree = trees.get()
    file = tree / mutant["module"]
    original = file.read_text()
    try:
        file.write_text(mutant["source"])
        return next(failures(mutant["tests"], tree, folder, "-x"), "survived")
    finally:
        file.write_text(original)
        trees.put(tree)


def unchanged(tests: list[str], trees: queue.Queue[Path], folder: Path) -> list[str]:
    """The tests among these that fail without any change."""
    tree = trees.get()
    try:
        return list(failures(tests, tree, folder))
    finally:
        trees.put(tree)


def failures(tests: list[str], tree: Path, folder: Path, *options: str) -> Iterator[str]:
    """The names of the tests that fail in the tree; "broken" where pytest cannot run them."""
    if not tests:
        return
    # A mutant changes few of the programs that a test compiles: the others are compiled once.
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            *options,
            *tests,
        ],
        cwd=tree,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=300 + len(tests))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        yield "broken"
        return
    failed = [line for line in printed.splitlines() if line.startswith("FAILED ")]
    yield from (line.removeprefix("FAILED ").partition(" - ")[0] for line in failed)
    if process.returncode and not failed:
        yield "broken"


if __name__ == "__main__":
    app()
