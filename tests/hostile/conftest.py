"""Shared by the fuzzers: how many cases, and what an error has to look like.

Every fuzzer takes its randomness from `random.Random(f"{name}/{case}")`, so that a failing case is
found again by its number. `pytest -m hostile --cases 2000` runs many; the suite runs a few.
`--first-case 10000` runs others than the last time.
"""

from pathlib import Path

import pytest

LONGEST_ERROR = 400


def pytest_collection_modifyitems(items):
    """Marks every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.hostile)


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
