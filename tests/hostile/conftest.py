"""Shared by the fuzzers: how many cases, and what an error has to look like.

Every fuzzer takes its randomness from `random.Random(f"{name}/{case}")`, so that a failing case is
found again by its number. `pytest -m hostile --cases 2000` runs many; the suite runs a few.
`--first-case 10000` runs others than the last time.
"""

import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.prompts.arrays import inputs_from_arrays
from vkq_apps.cli.app import COMMANDS, Place
from vkq_apps.cli.main import main

LONGEST_ERROR = 400


def pytest_collection_modifyitems(items):
    """Marks every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.hostile)


@pytest.fixture(scope="module")
def cache():
    """A cache of one layer, without visual tokens."""
    return vkq_jax.empty_cache(
        quant="signs-1bit",
        batch=1,
        num_layers=1,
        num_kv_heads=1,
        head_dim=8,
        cache_length=4,
        dtype=jnp.float32,
    )


@pytest.fixture(scope="module")
def inputs():
    """A prompt of five text tokens for the embedded model."""
    return inputs_from_arrays(models.read_config("tiny"), np.ones((1, 5), int))


@pytest.fixture
def one_clear_error():
    """Checks that an exception is what bad input should get: a ValueError or the like, short."""

    def check(error: BaseException) -> None:
        assert isinstance(error, ValueError | FileNotFoundError | NotImplementedError), repr(error)
        assert type(error) in (ValueError, FileNotFoundError, NotImplementedError), repr(error)
        text = str(error)
        assert text.strip(), "an error without a message"
        assert len(text) < LONGEST_ERROR, f"{len(text)} characters: {text}"

    return check


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Makes `vkq demo` a program of the test's own."""

    def make(program):
        name = f"program_{abs(hash(program))}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(program))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(COMMANDS, "demo", Place(name, "demo", "A test."))

    return make


def run(capsys, arguments):
    """Exit code and stderr; checks what every run owes."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    code = exit_.value.code
    assert "Traceback" not in out + err
    if code == 2:
        (line,) = [line for line in err.splitlines() if line.startswith("vkq: error: ")]
        assert len(line) < LONGEST_ERROR, line
        assert line.isprintable(), line
        assert not line.startswith("vkq: error: unexpected "), line
        assert out == ""
    return code, err
