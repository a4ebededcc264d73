"""Mutation tests: do the tests of a module notice when a line of it is changed?

    uv run --with cosmic-ray python tests/mutation.py groups models/generation/sampling --sample 20

runs, for each module (of vkq_jax where no package is named), the tests that bear its name and those
that are listed below against a sample of cosmic-ray's mutants, in a copy of the working tree, and
shows the mutants that survive. A survivor becomes a test, or is equivalent.
"""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
MORE = {
    "attention": ["tests/hostile/test_attention.py"],
    "cache_updates": ["tests/vkq_jax/test_cache.py"],
    "calibration": ["tests/vkq_jax/test_cache.py"],
    "consistency": ["tests/hostile/test_cache_files.py", "tests/vkq_jax/test_cache.py"],
    "groups": ["tests/vkq_jax/test_sign_codes.py", "tests/hostile/test_quantizers.py"],
    "level_codes": ["tests/hostile/test_quantizers.py"],
    "log_scale": ["tests/hostile/test_quantizers.py"],
    "persistence": ["tests/vkq_jax/test_cache.py", "tests/hostile/test_cache_files.py"],
    "post_scaling": ["tests/hostile/test_attention.py"],
    "range_rules": ["tests/hostile/test_quantizers.py"],
    "sign_codes": ["tests/hostile/test_quantizers.py"],
    "soft_cap": ["tests/hostile/test_attention.py"],
    "models/generation/argument_checks": [
        "tests/models/test_sampling.py",
        "tests/models/test_finite_check.py",
    ],
    "models/generation/generation_config": ["tests/models/test_sampling.py"],
    "models/inputs/padding": ["tests/models/test_split_and_padding.py"],
    "models/inputs/split": ["tests/models/test_split_and_padding.py"],
    "models/generation/token_chooser": ["tests/models/test_logits_processors.py"],
    "models/generation/token_history": [
        "tests/models/test_logits_processors.py",
        "tests/models/test_generate.py",
    ],
}
CONFIG = """
[cosmic-ray]
module-path = "{name}.py"
timeout = 300.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider -m 'not parity' {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def main(
    modules: list[str],
    sample: Annotated[int, typer.Option(help="Mutants of each module.")] = 20,
    seed: int = 0,
) -> None:
    """Runs a sample of each module's mutants and prints those that survive."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        parts = ("vkq_jax", "pallas_kernels", "models", "vkq_apps", "tests", "pyproject.toml")
        for part in parts:
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy.mkdir(exist_ok=True)
            copied(ROOT / part, copy / part)
        for name in modules:
            run(copy, name, sample, seed)


def run(copy: Path, name: str, sample: int, seed: int) -> None:
    """Mutates one module of the copy."""
    path = name if "/" in name else f"vkq_jax/{name}"
    package, module = path.split("/")[0], path.rsplit("/", 1)[1]
    own = f"tests/{package}/test_{module}.py"
    tests = [own] if (copy / own).exists() else []
    config, session = copy / f"{module}.toml", copy / f"{module}.sqlite"
    tests = " ".join(tests + MORE.get(name, []))
    if not tests:
        raise SystemExit(f"there are no tests for {name}: name them in MORE")
    config.write_text(CONFIG.format(name=path, python=sys.executable, tests=tests))
    cosmic_ray("init", config.name, session.name, copy=copy)
    with sqlite3.connect(session) as database:
        jobs = [row[0] for row in database.execute("SELECT job_id FROM work_items ORDER BY job_id")]
        places = "SELECT job_id FROM mutation_specs ORDER BY operator_name, start_pos_row, job_id"
        jobs = [row[0] for row in database.execute(places)]
        kept = set(random.Random(seed).sample(range(len(jobs)), min(sample, len(jobs))))
        for number, job in enumerate(jobs):
            if number not in kept:
                database.execute("DELETE FROM mutation_specs WHERE job_id = ?", (job,))
                database.execute("DELETE FROM work_items WHERE job_id = ?", (job,))
    cosmic_ray("exec", config.name, session.name, copy=copy)
    with sqlite3.connect(session) as database:
        survivors = database.execute(
            "SELECT diff FROM work_results WHERE test_outcome = 'SURVIVED'"
        ).fetchall()
    print(f"{name}: {len(survivors)} of {len(kept)} mutants (of {len(jobs)}) survived")
    for (diff,) in survivors:
        print("\n".join(line for line in diff.splitlines() if line[:1] in "+-@"))


def cosmic_ray(*arguments: str, copy: Path) -> None:
    """Runs cosmic-ray in the copy."""
    # A mutant changes few of the programs that a test compiles: the others are compiled once.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(copy / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    subprocess.run(["cosmic-ray", *arguments], cwd=copy, check=True, env={**os.environ, **cache})


if __name__ == "__main__":
    typer.run(main)
