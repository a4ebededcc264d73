"""Dictionary codes: unbiased, blind to padding, within their bits, the same under transforms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from tests.support.caches import random_side_tables, random_tables
from vkq_jax import DictionaryCodes, KVQuantConfig, TokenClass, dequantize, quantize
from vkq_jax.bits import exact_einsum
from vkq_jax.cache.visual_bank import code_bank
from vkq_jax.codes import dictionary_encoder
from vkq_jax.codes.image_centres import image_centres, in_units, nearest

H = 64
CLASSES = (TokenClass(0.1, 3), TokenClass(0.2, 2), TokenClass(0.3, 1), TokenClass(0.4, 0))
PLAIN = DictionaryCodes(CLASSES)
IN_UNITS = dataclasses.replace(PLAIN, smoothing=0.5, scale="between")
LEARNED = DictionaryCodes(CLASSES, codebook=16, learned=True, metric=True)


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    """Tokens of unlike energy around an offset, as visual keys are."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(size=(*shape[:-1], 1)))
    return jnp.asarray(rng.normal(size=shape) * size + 3 * rng.normal(size=shape[-1]), jnp.float32)


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_inner_products_of_a_token_with_itself_are_exact():
    """<x_hat - c, x - c> = |x - c|^2, up to the 8-bit scale, in every class that has bits."""
    x = tokens(2, 200, H)
    coded = quantize(x, PLAIN)
    centre = coded.centre.astype(jnp.float32)
    u, u_hat = x - centre, dequantize(coded) - centre
    ratio = np.asarray((u * u_hat).sum(-1) / (u * u).sum(-1))
    number = np.asarray(coded.class_map.classes())
    assert np.abs(ratio[number < 3] - 1).max() < 0.05
    assert np.abs(ratio[number < 3].mean() - 1) < 0.005
    np.testing.assert_array_equal(ratio[number == 3], 0)


def test_more_planes_are_closer():
    x = tokens(2, 300, H)
    coded = quantize(x, PLAIN)
    centre = coded.centre.astype(jnp.float32)
    error = np.asarray(jnp.square(dequantize(coded) - x).sum(-1) / jnp.square(x - centre).sum(-1))
    number = np.asarray(coded.class_map.classes())
    means = [error[number == c].mean() for c in range(4)]
    # Unbiased codes of N(0, 1) err by 1 / (1 - D) - 1, D that of a uniform grid; 1 without bits.
    np.testing.assert_allclose(means, [0.039, 0.135, 0.571, 1.0], rtol=0.15)


def test_a_class_without_bits_may_stand_before_others():
    """Scores and sums of a slot read the same token, whatever the order of the classes."""
    middle = DictionaryCodes((TokenClass(0.25, 2), TokenClass(0.5, 0), TokenClass(0.25, 1)))
    coded = quantize(tokens(2, 40, H), middle)
    columns = coded.scores(jnp.broadcast_to(jnp.eye(H), (2, H, H)))
    slots = columns.shape[-1]
    rows = coded.weighted_sum(jnp.broadcast_to(jnp.eye(slots), (2, slots, slots)))
    np.testing.assert_allclose(rows, jnp.swapaxes(columns, -1, -2), rtol=1e-4, atol=1e-4)
    assert len(np.unique(np.asarray(rows[0]), axis=0)) > 20


def test_a_scale_between_is_the_mean_of_both():
    x = tokens(2, 300, H)
    scales = [
        np.asarray(quantize(x, dataclasses.replace(PLAIN, scale=scale)).token_scale[2], int)
        for scale in ("norm", "between", "unbiased")
    ]
    # Codes are logarithms.
    assert np.abs(2 * scales[1] - scales[0] - scales[2]).max() <= 2
    taken = scales[0] > 0
    assert (scales[2] > scales[0])[taken].all()


def test_units_of_half_the_logarithm_suit_queries_that_are_alike_in_all_channels():
    """Outliers among channels no longer spread their error over the others."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 300, H)) * np.exp(1.5 * rng.normal(size=H)), jnp.float32)
    one = DictionaryCodes((TokenClass(1.0, 1),), scale="between")
    errors = {
        alpha: float(
            jnp.square(dequantize(quantize(x, dataclasses.replace(one, smoothing=alpha))) - x).sum()
        )
        for alpha in (0.0, 0.5, 1.0)
    }
    assert errors[0.5] < 0.6 * min(errors[0.0], errors[1.0])


def test_products_are_those_of_decoded_tokens_in_units():
    coded = quantize(tokens(2, 40, H), IN_UNITS)
    rows = coded.class_map.slots_of_positions()[..., None]
    scores = coded.scores(jnp.broadcast_to(jnp.eye(H), (2, H, H)))
    by_position = jnp.take_along_axis(jnp.swapaxes(scores, -1, -2), rows, axis=-2)
    np.testing.assert_allclose(by_position, dequantize(coded), rtol=1e-4, atol=1e-4)
    slots = scores.shape[-1]
    sums = coded.weighted_sum(jnp.broadcast_to(jnp.eye(slots), (2, slots, slots)))
    np.testing.assert_allclose(sums, jnp.swapaxes(scores, -1, -2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codes", [PLAIN, dataclasses.replace(PLAIN, centres=5), IN_UNITS])
def test_padding_has_no_influence(codes):
    x = tokens(2, 90, H)
    valid = jnp.arange(90)[None] < jnp.asarray([[90], [55]])
    noise = jnp.where(valid[..., None], x, jnp.nan)
    got = dequantize(quantize(noise, codes, valid=valid))
    alone = dequantize(quantize(x[1:, :55], codes))
    np.testing.assert_allclose(got[1, :55], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[0], dequantize(quantize(x, codes))[0])


def test_own_centres_leave_less_to_code():
    rng = np.random.default_rng(0)
    kinds = jnp.asarray(8 * rng.normal(size=(4, H)), jnp.float32)
    x = kinds[rng.integers(0, 4, 300)] + 0.3 * (
        tokens(300, H) - tokens(300, H).mean(0, keepdims=True)
    )
    one, four = (
        vkq_jax.relative_squared_error(
            x, dequantize(quantize(x, dataclasses.replace(PLAIN, centres=n)))
        )
        for n in (1, 4)
    )
    assert four < 0.5 * one


@pytest.mark.parametrize("name", ["vkq-1bit", "vkq-half", "vkq-2bit"])
@pytest.mark.parametrize(("head_dim", "column"), [(128, 0), (64, 1)])
def test_presets_keep_within_their_bits(name, head_dim, column):
    """All that a sequence stores, of an image of 576 tokens: the goals of issue 12."""
    most = {"vkq-1bit": (1.15, 1.25), "vkq-half": (0.62, 0.70), "vkq-2bit": (2.1, 2.2)}[name]
    x = jax.ShapeDtypeStruct((1, 1, 576, head_dim), jnp.float32)
    valid = jax.ShapeDtypeStruct((1, 576), bool)
    for quant in (vkq_jax.presets[name], *vkq_jax.calibrated_presets[name]):
        tables = random_tables(quant, 1, head_dim)
        code = functools.partial(code_bank, quant=quant, tables=tables)
        bank = jax.eval_shape(code, x, x, valid)
        coded = nbytes((bank.key, bank.value, bank.class_map))
        assert 8 * coded / (2 * 576 * head_dim) <= most[column], quant


def test_transforms_give_the_same_codes():
    x = tokens(3, 40, H)
    alone = [dequantize(quantize(row, PLAIN)) for row in x]
    mapped = jax.vmap(lambda row: dequantize(quantize(row, PLAIN)))(x)
    _, scanned = jax.lax.scan(lambda c, row: (c, dequantize(quantize(row, PLAIN))), None, x)
    for other in (mapped, scanned, jax.jit(lambda x: dequantize(quantize(x, PLAIN)))(x)):
        np.testing.assert_allclose(other, jnp.stack(alone), rtol=1e-5, atol=1e-5)


def test_the_gradient_is_straight_through():
    x = tokens(1, 30, H)
    gradient = jax.grad(lambda x: (2.0 * vkq_jax.fake_quantize(x, PLAIN)).sum())(x)
    np.testing.assert_array_equal(gradient, jnp.full_like(x, 2.0))


@pytest.mark.parametrize("length", [0, 1, 2])
def test_hardly_any_tokens(length):
    x = tokens(2, length, H)
    got = dequantize(quantize(x, dataclasses.replace(PLAIN, centres=4)))
    assert got.shape == x.shape
    assert jnp.isfinite(got).all()
    if length == 1:  # its own centre, rounded
        np.testing.assert_allclose(got, x, rtol=2**-7, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"centres": -1}, r"centres must be in \[0, 256\]"),
        ({"centres": 300}, r"centres must be in \[0, 256\]"),
        ({"codebook": 257}, r"codebook must be in \[0, 256\]"),
        ({"codebook": 1}, "2 to 256 centroids"),
        ({"centres": 2, "codebook": 8}, "exclude each other"),
        ({"basis": "queries"}, "one of learned dictionaries"),
        ({"scale": None}, "planes need a scale"),
        ({"smoothing": 1.5}, r"smoothing must be in \[0, 1\]"),
        ({"smoothing": 0.5, "codebook": 8}, "codes without tables"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **settings)


def test_tables_that_do_not_fit_are_refused():
    codes, x = DictionaryCodes(CLASSES, codebook=16), tokens(2, 30, H)
    tables = random_side_tables(codes, 2, H, np.random.default_rng(0))
    with pytest.raises(ValueError, match="need the tables"):
        quantize(x, codes)
    with pytest.raises(ValueError, match="codebook of 8 centroids, got 16"):
        quantize(x, dataclasses.replace(codes, codebook=8), tables=tables)
    with pytest.raises(ValueError, match="head_dim 32"):
        quantize(x[..., :32], codes, tables=tables)
    with pytest.raises(ValueError, match="dictionaries of 4 classes"):
        quantize(x, dataclasses.replace(codes, learned=True), tables=tables)
    coded = quantize(x, codes, tables=tables)
    with pytest.raises(ValueError, match=r"cannot be read without them.*cache\.tables"):
        dequantize(coded)
    with pytest.raises(ValueError, match=r"cache\.visual\[0\]\.dequantize\(cache\.tables\)"):
        dequantize(dataclasses.replace(coded, class_map=None))


def test_keys_and_values_have_classes_of_the_same_shares():
    other = DictionaryCodes((TokenClass(0.5, 1), TokenClass(0.5, 0)))
    with pytest.raises(ValueError, match="same shares"):
        KVQuantConfig(key=PLAIN, value=other)
    with pytest.raises(ValueError, match="same shares"):
        KVQuantConfig(key=PLAIN, value=vkq_jax.SignCodes())


def test_centres_of_bfloat16_tokens_are_those_of_float32(monkeypatch):
    """On a GPU, whose products of bfloat16 take the centres in two parts, as elsewhere."""
    rng = np.random.default_rng(0)
    token = rng.normal(size=(2, 90, 32)) + 2.0 * (np.arange(90) % 3)[:, None]
    valid = jnp.asarray(np.arange(90) < np.array([[90], [60]]))
    token = jnp.where(valid[..., None], jnp.asarray(token, jnp.bfloat16), 0)
    unit = jnp.asarray(np.exp(rng.normal(size=(2, 32))), jnp.bfloat16)
    cases = []
    for own in (None, unit):
        wide = in_units(token, own)
        expected = image_centres(wide, valid, 3)
        cases.append((own, expected, nearest(wide, expected)))
    monkeypatch.setattr(exact_einsum, "on_gpu", lambda: True)
    for own, expected, ids in cases:
        found = image_centres(token, valid, 3, own)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(nearest(token, expected, own), ids)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("key_codes", "value_codes", "dtype"),
    [
        (
            dataclasses.replace(IN_UNITS, centres=3),
            dataclasses.replace(PLAIN, centres=3),
            jnp.bfloat16,
        ),
        (LEARNED, LEARNED, jnp.float32),
    ],
)
def test_keys_and_values_in_one_tensor_are_coded_as_apart(
    key_codes, value_codes, dtype, monkeypatch
):
    """Keys in units and values not, with tables, an element that is not finite."""
    quant = KVQuantConfig(key=key_codes, value=value_codes)
    key, value = (tokens(2, 2, 70, H, seed=seed).astype(dtype) for seed in (0, 1))
    key = key.at[0, 1, 3, 5].set(jnp.nan)
    valid = jnp.arange(70)[None] < jnp.asarray([[70], [41]])
    tables = random_tables(quant, 2, H)
    assert dictionary_encoder.alike((key_codes, value_codes), tables)
    # Functions of their own, or the second would be the first one's program.
    together = jax.jit(lambda k, v: code_bank(k, v, valid, quant, tables))(key, value)
    monkeypatch.setattr(dictionary_encoder, "alike", lambda *_: False)
    apart = jax.jit(lambda k, v: code_bank(k, v, valid, quant, tables))(key, value)
    assert isinstance(apart.key, vkq_jax.DictionaryTensor)
    assert jnp.isnan(apart.key.centre[0, 1]).all()
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_array_equal(one.astype(jnp.float32), other.astype(jnp.float32))


@pytest.mark.parametrize("count", [1, 2, 17])
def test_units_of_few_tokens_do_not_depend_on_the_room_of_their_bank(count):
    """Channels far from 0 beside the spread of their tokens: sums of squares must not cancel."""
    offset = 100 * jax.random.normal(jax.random.key(1), (1, 1, 1, 64))
    tokens = jax.random.normal(jax.random.key(0), (1, 1, count, 64)) + offset
    roomy = jnp.zeros((1, 1, 3328, 64)).at[..., :count, :].set(tokens)
    valid = jnp.arange(3328)[None, None] < count
    unit = quantize(roomy, IN_UNITS, valid=valid).unit
    np.testing.assert_allclose(unit, quantize(tokens, IN_UNITS).unit, rtol=2**-8)
