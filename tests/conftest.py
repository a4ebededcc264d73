"""Tests run stricter than users: see `strict_numerics` and the filters in pyproject.toml."""

import gc
import importlib.util
import os
import signal
import sys

# Nearly all of the suite's time is XLA compiling small programs once. Before JAX is imported.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS") or (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# Runs of `vkq` must not leave the suite's small programs in the user's cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

# Checks the shape and dtype annotations of the pure-JAX packages at run time. Must come before
# their first import.
install_import_hook(["vkq_jax", "pallas_kernels"], "beartype.beartype")


def pytest_addoption(parser):
    parser.addoption(
        "--cases",
        type=int,
        default=None,
        help="cases of each test that draws them by number (a few by default)",
    )
    parser.addoption(
        "--first-case",
        type=int,
        default=0,
        help="number of the first of them: other numbers are cases that never ran",
    )


def pytest_collection_modifyitems(config, items):
    """Long tests run when they are asked for, comparisons with PyTorch's models where it is."""
    asked = config.getoption("markexpr")
    reasons = {"ci": None if "ci" in asked else "takes minutes: -m ci"}
    if importlib.util.find_spec("torch") is None:
        reasons["parity"] = "needs PyTorch: --group parity"
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def strict_numerics(request):
    """In the pure-JAX packages no dtype or rank is promoted silently (Flax relies on it)."""
    if not any(part in ("vkq_jax", "pallas_kernels") for part in request.path.parts):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def cases(request):
    """Numbers of the cases that a test draws, given its own small default: `cases(20)`."""
    asked, first = (request.config.getoption(name) for name in ("--cases", "--first-case"))
    return lambda default: range(first, first + (default if asked is None else asked))


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Annotations are not checked at run time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def hears_ctrl_c(monkeypatch):
    """Shells start what runs in the background with Ctrl-C ignored: Python's own handler is set.

    An interrupted program does not end the process of the tests.
    """
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
    """Frees a module's programs at its end.

    Each takes a few memory maps, of which Linux gives a process 65,530: all the suite's together
    are more, and XLA crashes where it gets none. And what a module traced with a function replaced
    by another is no other module's.
    """
    yield
    jax.clear_caches()
    gc.collect()
