"""Only the answers that may differ from full precision's are written anew."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from models.generation.teacher_forcing import Prompted
from vkq_apps.evals import answers

CASES = [([], 0), ([3], 8), ([0, 5, 17], 8), (list(range(9)), 16), (list(range(17)), 20)]


@pytest.mark.parametrize(("differing", "decoded"), CASES)
def test_rows_that_differ_are_written_anew(monkeypatch, differing, decoded):
    count, sizes = 20, []

    def write(self, prompted):
        sizes.append(len(prompted.logits))
        return prompted.logits[:, 0]

    monkeypatch.setattr(answers, "take_sequences", lambda cache, rows: cache)
    monkeypatch.setattr(answers.Written, "_write", write)
    monkeypatch.setattr(answers.Written, "_texts", lambda self, rows: [f"new {x}" for x in rows])
    written = answers.Written.__new__(answers.Written)
    written._own = [f"own {row}" for row in range(count)]
    written.exact = types.SimpleNamespace(lengths=np.full(count, 4))
    batch = [[row] for row in range(18)]  # the last two rows only fill up
    written._batch = types.SimpleNamespace(rows=[0] * count, rows_of_samples=batch)
    first = np.where(np.isin(np.arange(count), differing), 1, 4)
    comparison = types.SimpleNamespace(first_difference=first)
    got = written.texts(Prompted(jnp.arange(count)[:, None], None), comparison)
    assert got == [f"{'new' if row in differing else 'own'} {row}" for row in range(18)]
    assert sum(sizes) == (0 if differing == [] else decoded)
