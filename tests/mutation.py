"""Changes one operator or number of a file at a time and asks whether the tests notice.

    uv run python -m tests.mutation models/sampling.py -- tests/models/test_sampling.py

Each mutant is a fork of one process that has imported JAX, in a copy of the tree, with JAX's
compilation cache: a second or two instead of the half minute of a tool that starts anew each time.
Survivors are printed with their line; messages of errors, annotations and decorators are left alone.
"""

import ast
import copy
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 300
_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutants(tree: ast.Module) -> Iterator[ast.Module]:
    """The module with one change, for each change there is."""
    for number, node in enumerate(ast.walk(tree)):
        if node in _left_alone(tree):
            continue
        for change in range(2):
            mutated = copy.deepcopy(tree)
            if _change(next(n for i, n in enumerate(ast.walk(mutated)) if i == number), change):
                yield mutated


def _left_alone(tree: ast.Module) -> set[ast.AST]:
    roots: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.TypeAlias | ast.Import | ast.ImportFrom):
            roots.append(node)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            roots += [*node.decorator_list, *([node.returns] if hasattr(node, "returns") else [])]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            roots.append(node.annotation)
    return {inner for root in roots if root is not None for inner in ast.walk(root)}


def _change(node: ast.AST, change: int) -> bool:
    """Changes the node in place; whether there is a change of this number."""
    match node:
        case ast.Compare() if change < len(node.ops) and type(node.ops[change]) in _SWAPS:
            node.ops[change] = _SWAPS[type(node.ops[change])]()
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if not change and type(node.op) in _SWAPS:
            node.op = _SWAPS[type(node.op)]()
        case ast.UnaryOp() if not change:
            node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
            if isinstance(node.op, ast.Not):
                node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case ast.IfExp() if not change:
            node.body, node.orelse = node.orelse, node.body
        case ast.If() if not change:
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Constant(bool(value)) if not change:
            node.value = not value
        case ast.Constant(int(value) | float(value)) if not isinstance(value, bool):
            node.value = value + 1 if not change else value - 1
        case _:
            return False
    ast.fix_missing_locations(node)
    return True


def _survives(tree: Path, tests: list[str]) -> bool:
    """Whether the tests pass in a fork that works in `tree`."""
    child = os.fork()
    if child == 0:
        signal.alarm(_SECONDS)  # a mutant that never ends is noticed
        os.chdir(tree)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", os.environ["PWD"]))]
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    return os.waitpid(child, 0)[1] == 0


def main(arguments: list[str]) -> int:
    """Runs all mutants of the files before `--` against the tests behind it."""
    split = arguments.index("--")
    files, tests = arguments[:split], arguments[split + 1 :]
    survivors = total = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        import flax.nnx
        import jaxtyping  # noqa: F401  # what every test imports

        tree = Path(folder, "tree")
        hidden = shutil.ignore_patterns(".*", "results", "docs", "__pycache__")
        shutil.copytree(Path.cwd(), tree, ignore=hidden)
        sys.dont_write_bytecode = True
        if not _survives(tree, tests):
            print("the tests fail as they are")
            return 2
        for file in files:
            source = Path(file).read_text()
            lines = ast.unparse(ast.parse(source)).splitlines()
            for mutated in mutants(ast.parse(source)):
                text = ast.unparse(mutated)
                (tree / file).write_text(text)
                total += 1
                if _survives(tree, tests):
                    survivors += 1
                    changed = [
                        f"{old.strip()}  ->  {new.strip()}"
                        for old, new in zip(lines, text.splitlines(), strict=False)
                        if old != new
                    ]
                    print(f"{file}: {changed[0] if changed else '?'}", flush=True)
            (tree / file).write_text(source)
    print(f"{survivors} of {total} mutants survive", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
