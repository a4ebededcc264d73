import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkq_jax.bits import packing


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from(packing.SUPPORTED_BITS),
    length=st.sampled_from([0, 1, 31, 32, 33, 70]),
    lead=st.sampled_from([(2,), (2, 0)]),
    seed=st.integers(0, 99),
)
def test_unpack_inverts_pack(bits, length, lead, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (*lead, length))
    packed = jax.jit(packing.pack, static_argnums=1)(jnp.asarray(codes, jnp.uint32), bits)
    assert packed.shape == (*lead, packing.num_words(length, bits))
    unpack = jax.jit(packing.unpack, static_argnums=(1, 2))
    np.testing.assert_array_equal(unpack(packed, bits, length), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "words"),
    [
        (1, [1, 0, 1, 1], [0b1101]),
        (1, [0] * 31 + [1, 1], [1 << 31, 1]),
        (2, [3, 0, 1], [0b01_00_11]),
        (4, [0xA, 0xB, 0xC], [0xCBA]),
        (8, [1, 2, 3, 4, 5], [0x04030201, 5]),
    ],
)
def test_bit_order_is_little_endian(bits, codes, words):
    np.testing.assert_array_equal(packing.pack(jnp.array(codes, jnp.uint32), bits), words)


def test_booleans_pack_as_one_bit():
    assert packing.pack(jnp.array([True, False, True]), 1).tolist() == [5]


@pytest.mark.parametrize("bits", [1, 2, packing.TERNARY])
def test_any_axis_packs_as_the_last_one(bits):
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 37, 4)), jnp.uint32)
    expected = packing.pack(jnp.swapaxes(codes, 1, 2), bits)
    np.testing.assert_array_equal(packing.pack(codes, bits, axis=1), jnp.swapaxes(expected, 1, 2))


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match=rf"one of \(1, 2, 4, 8\), got {bits}"):
        packing.pack(jnp.zeros(4, jnp.uint32), bits)
    with pytest.raises(ValueError, match=f"got {bits}"):
        packing.unpack(jnp.zeros(1, jnp.uint32), bits, 4)


@pytest.mark.parametrize(
    ("bits", "length", "words", "message"),
    [
        (1, 33, [[7, 1], [2**31, 0]], None),
        (1, 33, [[7, 1], [0, 2]], "unused high bits of the last word of 33 codes must be 0"),
        (2, 17, [[2**32 - 1, 3]], None),
        (2, 17, [[0, 4]], "unused high bits"),
        (4, 8, [[2**32 - 1]], None),
        (8, 1, [[255]], None),
        (8, 1, [[256]], "unused high bits"),
        (1, 0, [[]], None),
        (1, 32, [[1, 0]], "32 codes of 1 bits take 1 words, got 2"),
        (1, 33, [[1]], "33 codes of 1 bits take 2 words, got 1"),
        (3, 8, [[1]], "bits must be 1.6 or one of"),
        (1.6, 7, [[242, 8], [0, 0]], None),
        (1.6, 7, [[242, 9]], "bytes of 7 codes in base 3 must be below 243, the last one below 9"),
        (1.6, 7, [[0, 0], [243, 0]], "must be below 243"),
        (1.6, 10, [[242, 242]], None),
        (1.6, 10, [[0, 243]], "the last one below 243"),
        (1.6, 0, [[]], None),
        (1.6, 10, [[0]], "10 codes of 1.6 bits take 2 words, got 1"),
    ],
)
def test_words_from_outside_are_checked(bits, length, words, message):
    dtype = np.uint8 if bits == packing.TERNARY else np.uint32
    packed = jnp.asarray(np.asarray(words, dtype))
    if message is None:
        return packing.check_words(packed, bits, length)
    with pytest.raises(ValueError, match=message):
        packing.check_words(packed, bits, length)
