"""Parts of a calibration are made once, and found again by their digests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from models.calibration.folder import CalibrationFolder, digest_of
from models.calibration.samples import CodeSamples
from vkq_jax import CodeTables, SideTables

TABLES = CodeTables(SideTables(codebook=jnp.ones((1, 2, 4, 8))), SideTables())
QUANT = vkq_jax.resolve("vkq-1bit")


def samples() -> tuple[CodeSamples, ...]:
    fields = CodeSamples.__dataclass_fields__
    return tuple(
        CodeSamples(
            **{name: np.full(2, 10 * kind + i, np.float32) for i, name in enumerate(fields)}
        )
        for kind in range(2)
    )


PARTS = {
    "samples": lambda kept, digest, make: kept.samples(digest, lambda: make() or samples()),
    "tables": lambda kept, digest, make: kept.tables(digest, QUANT, lambda: make() or TABLES),
    "numbers": lambda kept, digest, make: kept.numbers(digest, lambda: make() or [0.5, 2.0]),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_made_once_for_each_digest(tmp_path, part):
    made = []
    for folder, digests, expected in ((tmp_path, "aab", 2), (None, "aa", 2)):
        made.clear()
        got = [PARTS[part](CalibrationFolder(folder), x, lambda: made.append(1)) for x in digests]
        assert len(made) == expected
        for other in got[1:]:
            jax.tree.map(np.testing.assert_array_equal, other, got[0])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("part", "content"), [(part, b"") for part in PARTS] + [("numbers", b"[1]"), ("numbers", b"{}")]
)
def test_a_damaged_part_is_named(tmp_path, part, content):
    PARTS[part](CalibrationFolder(tmp_path), "a", lambda: None)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name} is damaged, delete it to have it made anew"):
        PARTS[part](CalibrationFolder(tmp_path), "a", lambda: pytest.fail("made anew"))


def test_samples_of_other_values_are_damaged(tmp_path):
    kept = CalibrationFolder(tmp_path)
    kept.samples("a", samples)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="its arrays are not those that were written"):
        kept.samples("a", samples)


def test_the_digest_tells_values_shapes_and_dtypes_apart():
    values = [jnp.zeros(4), jnp.ones(4), jnp.zeros((2, 2)), jnp.zeros(4, jnp.int32), "0", 0, QUANT]
    assert len({digest_of(value) for value in values}) == len(values)
    assert digest_of({"a": jnp.zeros(4)}, 1) == digest_of({"a": np.zeros(4, np.float32)}, 1)
