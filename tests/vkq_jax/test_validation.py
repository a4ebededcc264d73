"""Settings and pytrees from outside are checked by their annotations and by `check`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from vkq_jax import LevelCodes, MinMax, Quantile, ScoreCalibration, Shrink, SignCodes
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.soft_cap import check_soft_cap
from vkq_jax.byte_units import human_bytes
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.validation import check_fields, check_tree

if TYPE_CHECKING:
    from collections.abc import Hashable


pytestmark = pytest.mark.usefixtures("as_users_run_it")


@frozen_pytree
class Rows:
    values: Float[Array, "B n"]
    length: Int32[Array, "B"]
    other: Float[Array, "B n"] | Int32[Array, "B n"] | None = None
    side: Literal["key", "value"] = static_field(default="key")

    def check(self):
        if (self.length > self.values.shape[-1]).any():
            raise ValueError(f"length must be at most {self.values.shape[-1]}")


@frozen_pytree
class Pair:
    rows: tuple[Rows, ...]
    limits: tuple[int, float] = static_field(default=(0, 1.0))


@dataclasses.dataclass
class OfTypeCheckers:
    name: "Hashable"


ROWS = Rows(jnp.ones((2, 3), jnp.float32), jnp.asarray([1, 3], jnp.int32))


def test_what_fits_passes():
    other = jnp.ones((2, 3), jnp.int32)
    for rows in (ROWS, dataclasses.replace(ROWS, other=other), Rows(*jax.tree.leaves(ROWS))):
        check_tree(Pair((rows, ROWS)), "pair")
    check_fields(OfTypeCheckers(name=[]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": jnp.ones(3, jnp.int32)}, r"rows.1: length .* int32 \[3\] beside values float"),
        ({"length": jnp.ones(2, jnp.uint32)}, r"length must be Int32 \[B\], got uint32 \[2\]"),
        ({"length": jnp.asarray([4, 1], jnp.int32)}, "pair.rows.1: length must be at most 3"),
        ({"other": jnp.ones((2, 4), jnp.int32)}, r"Int32 \[B, n\] or None, got int32 \[2, 4\]"),
        ({"values": jnp.full((2, 3), jnp.nan)}, "pair.rows.1.values must be finite, got nan"),
        ({"values": 3.0}, r"values must be Float \[B, n\], got 3.0"),
        ({"side": "both"}, r"side must be one of \('key', 'value'\), got 'both'"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(changes, message):
    with pytest.raises(ValueError, match=message):
        check_tree(Pair((ROWS, dataclasses.replace(ROWS, **changes))), "pair")


@pytest.mark.parametrize("limits", [(0,), (0, 1.0, 2.0), (0.5, 1.0), (True, 1.0), [0, 1.0], None])
def test_tuples_and_numbers_are_strict(limits):
    with pytest.raises(ValueError, match=r"limits must be tuple\[int, float\], got"):
        check_fields(Pair((), limits))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (LevelCodes, {"bits": True}, "bits must be an integer or a number, got True"),
        (LevelCodes, {"bits": 1.0}, r"bits must be 1.6 or one of \(1, 2, 4, 8\), got 1.0"),
        (LevelCodes, {"group_size": "64"}, "group_size must be an integer or None, got '64'"),
        (LevelCodes, {"granularity": "x"}, "must be Granularity.PER_CHANNEL or .*, got 'x'"),
        (LevelCodes, {"table_dtype": jnp.float32}, "table_dtype must be a string, got"),
        (LevelCodes, {"range_rule": 3}, r"range_rule must be .*, such as MinMax\(\) .*, got 3"),
        (LevelCodes, {"range_rule": MinMax}, r"range_rule must be .*, got <class .*MinMax"),
        (SignCodes, {"scale_bits": 8.0}, r"scale_bits must be one of \(8, 16\), got 8.0"),
        (SignCodes, {"rotation": "x"}, r"rotation must be one of \('hadamard',\) or None"),
        (SignCodes, {"gamma": "1"}, "gamma must be a number, got '1'"),
        (SignCodes, {"gamma": jnp.ones(())}, "gamma must be a number, got float32"),
        (ScoreCalibration, {"tau1": None}, "tau1 must be a number, got None"),
        (ScoreCalibration, {"tau2": float("inf")}, "tau2 must be finite, got inf"),
        (Quantile, {"q": "a"}, "q must be a number, got 'a'"),
        (Shrink, {"s": None}, "s must be a number, got None"),
    ],
)
def test_settings_of_another_type_are_named(make: Any, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("cap", [0, -1.0, float("inf"), float("nan"), True, "30", [30.0]])
def test_a_soft_cap_is_a_finite_number_above_zero(cap):
    check_soft_cap(None)
    check_soft_cap(np.float32(30))
    with pytest.raises(ValueError, match="logits_soft_cap must be a finite positive number"):
        check_soft_cap(cap)


def test_bytes_have_binary_units():
    sizes = (0, 1023, 1024, 1536, 900 * 2**20, 3 * 2**40)
    shown = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "900.0 MiB", "3072.0 GiB"]
    assert [human_bytes(size) for size in sizes] == shown


@dataclasses.dataclass(frozen=True)
class Halves(vkq_jax.Quantizer):
    """A family of one's own: half precision."""

    def quantize(self, x, valid):
        return HalfTensor(jnp.where(valid[..., None], x, 0).astype(jnp.float16))


@frozen_pytree
class HalfTensor(vkq_jax.QuantizedTensor):
    """Its values in float16."""

    halves: Float[Array, "*lead V H"]
    exponent: int = static_field(default=0)

    def decoding(self):
        raise NotImplementedError

    def dequantize(self):
        return self.halves.astype(jnp.float32)


def test_a_family_of_ones_own_is_checked_without_a_line_of_code(tmp_path):
    quant, path = vkq_jax.KVQuantConfig(Halves(), Halves()), tmp_path / "cache"
    cache = vkq_jax.empty_cache(
        num_layers=1, batch=2, num_kv_heads=1, head_dim=4, cache_length=3, quant=quant
    )
    x = jnp.ones((1, 2, 1, 5, 4), jnp.float32)
    coded = vkq_jax.quantize(x, Halves())
    assert isinstance(coded, HalfTensor)

    def load(key):
        bank = vkq_jax.VisualBank(key, coded, jnp.asarray([5, 2], jnp.int32))
        vkq_jax.save_cache(path, dataclasses.replace(cache, visual=(bank,)))
        return vkq_jax.load_cache(path, types=[Halves, HalfTensor])

    assert load(coded).visual[0].key.halves.dtype == jnp.float16
    for key, message in [
        (HalfTensor(x), r"expected halves float16 .*, got float32 \[2, 1, 5, 4\]"),
        (dataclasses.replace(coded, exponent=1), "expected exponent 0, got 1"),
        (HalfTensor(coded.halves[..., :3]), r"must have the axes .* got keys \[2, 1, 5, 3\]"),
        (HalfTensor(coded.halves * jnp.inf), "halves must be finite"),
        (vkq_jax.DenseTensor(x), "expected a HalfTensor, got a DenseTensor"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(key)
