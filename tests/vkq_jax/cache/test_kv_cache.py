"""Cache operations: each returns a new cache, and attention sees what it should."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vkq_jax
from tests.support import caches
from vkq_jax.cache.visual import left_pack
from vkq_jax.cache.visual_bank import VisualBank, quantize_visual
from vkq_jax.files import persistence

LAYERS, BATCH, HEADS, DIM = 3, 2, 2, 16


def empty(quant="vkq-1bit", cache_length=6, dtype=jnp.float32, **options):
    return vkq_jax.empty_cache(
        num_layers=LAYERS,
        batch=BATCH,
        num_kv_heads=HEADS,
        head_dim=DIM,
        cache_length=cache_length,
        quant=vkq_jax.resolve(quant),
        dtype=dtype,
        **options,
    )


def tokens(count, seed=0, batch=BATCH):
    shape = (LAYERS, batch, count, HEADS, DIM)
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], shape)


@functools.cache  # no test changes one
def with_visual(quant="vkq-1bit", positions=40, counts=(40, 11), **options):
    """A cache with one visual bank of ragged length and two text tokens."""
    cache = empty(quant, **options)
    index, valid = left_pack(jnp.arange(positions)[None] < jnp.asarray(counts)[:, None], positions)

    @jax.jit
    @jax.vmap
    def code(key, value):
        bank = quantize_visual(key, value, index, valid, cache.quant)
        return bank.key, bank.value, bank.class_map

    counts = jnp.asarray(counts, jnp.int32)
    key, value, class_map = code(*tokens(positions, seed=1))
    bank = VisualBank(key, value, counts, index if cache.keeps_indices else None, class_map)
    cache = dataclasses.replace(cache, visual=(bank,), position=counts)
    return vkq_jax.append(cache, *tokens(2))


def mapped(cache):
    """With a static score map, unlike for each layer and query head."""
    slope = jnp.linspace(0.2, 0.9, LAYERS * 2 * HEADS, dtype=jnp.float32).reshape(LAYERS, -1)
    score_map = vkq_jax.ScoreMap(slope, 1 - slope, quant=cache.quant)
    return dataclasses.replace(cache, score_map=score_map)


def attend(cache, layer=1, seed=3):
    batch = cache.position.shape[0]
    query = jax.random.normal(jax.random.key(seed), (BATCH, 1, 2 * HEADS, DIM))[:batch]
    return caches.attend(query, cache.layer(layer)).output


def test_append_equals_one_by_one_and_skips_invalid_tokens():
    key, value = tokens(3)
    valid = jnp.asarray([[True, True, True], [False, True, False]])
    at_once = vkq_jax.append(empty(), key, value, valid)
    step = empty()
    for t in range(3):
        step = vkq_jax.append(
            step, *(x[:, :, t : t + 1] for x in (key, value)), valid[:, t : t + 1]
        )
    chex.assert_trees_all_equal(at_once, step)
    assert at_once.text.length.tolist() == at_once.position.tolist() == [3, 1]
    np.testing.assert_array_equal(at_once.text.key[:, 1, :, 0], key[:, 1, 1])


def test_every_update_keeps_indices_once_for_all_layers():
    valid = jnp.asarray([[True, True, True], [False, True, False]])
    cache = vkq_jax.append(with_visual(keep_indices=True), *tokens(3), valid)
    assert cache.text.index.tolist() == [[40, 41, 42, 43, 44, 0], [11, 12, 13, 0, 0, 0]]
    grown = vkq_jax.grow(cache, 8)
    assert grown.text.index.shape == (BATCH, 8)
    np.testing.assert_array_equal(grown.text.index[:, :6], cache.text.index)
    taken = vkq_jax.take_sequences(cache, jnp.asarray([1, 1, 0]))
    for before, after in (
        (cache.text.index, taken.text.index),
        (cache.visual[0].index, taken.visual[0].index),
    ):
        np.testing.assert_array_equal(after, before[jnp.asarray([1, 1, 0])])
    assert vkq_jax.append(with_visual(), *tokens(3)).keeps_indices is False


def test_positions_under_vmap_save_and_restore(tmp_path):
    caches = [with_visual(keep_indices=True, counts=c) for c in ((40, 11), (7, 30))]
    together = jax.tree.map(lambda *x: jnp.stack(x), *caches)
    appended = jax.vmap(lambda cache: vkq_jax.append(cache, *tokens(2)))(together)
    for i, cache in enumerate(caches):
        expected = vkq_jax.append(cache, *tokens(2)).text.index
        np.testing.assert_array_equal(appended.text.index[i], expected)
    vkq_jax.save_cache(tmp_path / "cache.safetensors", caches[0])
    chex.assert_trees_all_equal(vkq_jax.load_cache(tmp_path / "cache.safetensors"), caches[0])


def test_positions_are_counted():
    plain, kept = (vkq_jax.cache_nbytes(with_visual(keep_indices=x)) for x in (False, True))
    assert kept.visual_tables - plain.visual_tables == 4 * BATCH * 40
    assert kept.text - plain.text == 4 * BATCH * 6
    assert kept.visual_codes == plain.visual_codes
    # Those of a full-precision cache, too, which saves nothing and costs nothing.
    assert kept.visual_full_precision - plain.visual_full_precision == 4 * BATCH * 40


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_that_the_cache_does_not_have_is_refused(layer):
    with pytest.raises(ValueError, match=rf"layer must be in \[0, {LAYERS}\), got"):
        empty().layer(layer)


def test_append_leaves_the_given_cache_alone():
    cache = empty()
    before = jax.tree.map(np.asarray, cache)
    vkq_jax.append(cache, *tokens(2))
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, cache), before)


def test_append_beyond_the_capacity_is_an_error():
    with pytest.raises(ValueError, match=r"holds 6 text tokens a sequence, 7 are needed"):
        vkq_jax.append(empty(), *tokens(7))


def test_append_under_jit_and_scan():
    key, value = tokens(4)

    def step(cache, kv):
        return vkq_jax.append(cache, *(x[:, :, None] for x in kv)), None

    moved = tuple(jnp.moveaxis(x, 2, 0) for x in (key, value))
    scanned, _ = jax.jit(lambda c, kv: jax.lax.scan(step, c, kv))(empty(), moved)
    chex.assert_trees_all_equal(scanned, vkq_jax.append(empty(), key, value))


def test_grow_changes_nothing_that_is_seen():
    cache = with_visual()
    grown = vkq_jax.grow(cache, 20)
    assert grown.text.cache_length == 20
    assert vkq_jax.grow(cache, 3) is cache
    np.testing.assert_allclose(attend(grown), attend(cache), rtol=1e-6, atol=1e-6)


def test_take_sequences_reorders_slices_and_repeats():
    cache = with_visual()
    for indices in ([1, 0], [1], [0, 0]):
        taken = vkq_jax.take_sequences(cache, jnp.asarray(indices))
        assert taken.visual[0].length.tolist() == [[40, 11][i] for i in indices]
        for row, index in enumerate(indices):
            one = vkq_jax.take_sequences(taken, jnp.asarray([row]))
            chex.assert_trees_all_equal(one, vkq_jax.take_sequences(cache, jnp.asarray([index])))


def test_take_sequences_checks_indices_outside_jit():
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\), got \[0, 2\]"):
        vkq_jax.take_sequences(with_visual(), jnp.asarray([0, 2]))
    jitted = jax.jit(vkq_jax.take_sequences)(with_visual(), jnp.asarray([1, 0]))
    assert jitted.visual[0].length.tolist() == [11, 40]


def test_take_sequences_selects_by_a_mask():
    cache = with_visual()
    for mask in ([False, True], np.asarray([False, True]), jnp.asarray([False, True])):
        taken = vkq_jax.take_sequences(cache, mask)
        chex.assert_trees_all_equal(taken, vkq_jax.take_sequences(cache, [1]))
    chex.assert_trees_all_equal(vkq_jax.take_sequences(cache, [True, True]), cache)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0.9], r"list of integers in \[0, 2\) or of 2 booleans.*got \[0.9\]"),
        (jnp.asarray([1.0]), r"list of integers.*got float32 \[1\]"),
        ([[0]], r"got \[\[0\]\]"),
        ([0, [1]], r"got \[0, \[1\]\]"),
        (1, r"got 1$"),
        ([], r"at least one, got \[\]"),
        ([True, 0], r"got \[True, 0\]"),
        ([2**70], r"list of integers"),
        ([-1], r"must lie in \[0, 2\), got \[-1\]"),
        ([2**40], r"must lie in \[0, 2\)"),
        ([True], r"a mask of sequences must be 2 booleans, one of them true, got \[True\]"),
        ([True, False, True], r"a mask of sequences must be 2 booleans"),
        ([False, False], r"one of them true"),
    ],
)
def test_take_sequences_refuses_what_names_no_sequences(as_users_run_it, indices, message):
    with pytest.raises(ValueError, match=message):
        vkq_jax.take_sequences(empty(), indices)


def test_take_sequences_inside_jit_takes_integers_and_clamps_them():
    cache = dataclasses.replace(empty(), position=jnp.asarray([3, 4], jnp.int32))
    take = jax.jit(vkq_jax.take_sequences)
    for dtype in (jnp.int32, jnp.uint8):
        assert take(cache, jnp.asarray([1, 200, 0], dtype)).position.tolist() == [4, 4, 3]
    assert take(cache, jnp.asarray([-2, 0], jnp.int32)).position.tolist() == [3, 3]
    with pytest.raises(ValueError, match="inside jit sequences are taken by integers"):
        take(cache, jnp.asarray([True, False]))
    with pytest.raises(ValueError, match="list of integers"):
        take(cache, jnp.asarray([0.0]))


def test_a_layer_may_be_traced():
    cache = with_visual()
    traced = jax.jit(lambda c, i: c.layer(i))(cache, 2)
    chex.assert_trees_all_equal(traced, cache.layer(2))


def test_every_update_keeps_the_score_map():
    cache = mapped(with_visual())
    for updated in (
        vkq_jax.append(cache, *tokens(1)),
        vkq_jax.grow(cache, 20),
        vkq_jax.take_sequences(cache, jnp.asarray([1, 1, 0])),
    ):
        chex.assert_trees_all_equal(updated.score_map, cache.score_map)
    one = cache.layer(1).score_map
    np.testing.assert_array_equal(one.slope, cache.score_map.slope[1])
    np.testing.assert_array_equal(one.shift, cache.score_map.shift[1])
    assert (attend(cache) != attend(with_visual())).any()


def test_saved_and_restored_with_a_score_map(tmp_path):
    cache = mapped(with_visual())
    vkq_jax.save_cache(tmp_path / "cache.safetensors", cache)
    chex.assert_trees_all_equal(vkq_jax.load_cache(tmp_path / "cache.safetensors"), cache)
    path = tmp_path / "map.safetensors"
    vkq_jax.save_score_map(path, cache.score_map)
    restored = vkq_jax.load_score_map(path)
    chex.assert_trees_all_equal(restored, cache.score_map)
    assert restored.quant == cache.quant
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache.safetensors", "map.safetensors"]


def test_a_file_of_another_version_is_to_be_made_again(tmp_path, monkeypatch):
    path = tmp_path / "cache.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(persistence, "_format", lambda kind: f"vkq-jax {kind} 1")
        vkq_jax.save_cache(path, empty())
    with pytest.raises(ValueError, match=r"got 'vkq-jax cache 1': make it again"):
        vkq_jax.load_cache(path)


def test_score_map_files_that_are_none_are_one_clear_error(tmp_path):
    path = tmp_path / "map.safetensors"
    vkq_jax.save_cache(path, empty())
    with pytest.raises(ValueError, match="is not a score map written by vkq_jax"):
        vkq_jax.load_score_map(path)
    vkq_jax.save_score_map(path, mapped(empty()).score_map)
    with pytest.raises(ValueError, match="is not a cache written by vkq_jax"):
        vkq_jax.load_cache(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is damaged"):
        vkq_jax.load_score_map(path)
    with pytest.raises(FileNotFoundError, match="no score map file at"):
        vkq_jax.load_score_map(tmp_path / "nothing")


@pytest.mark.parametrize("preset", ["vkq-1bit", "calibquant-1bit", "kivi-2bit"])
def test_a_bank_without_capacity(preset):
    cache = with_visual(preset, positions=0, counts=(0, 0))
    without = dataclasses.replace(cache, visual=())
    np.testing.assert_allclose(attend(cache), attend(without), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("slope", np.nan, "every slope finite and not negative, got nan"),
        ("slope", -0.5, "every slope finite and not negative, got -0.5"),
        ("shift", np.inf, "every shift finite, got inf"),
    ],
)
def test_a_score_map_of_values_that_are_none_is_one_clear_error(tmp_path, name, value, message):
    cache, path = mapped(with_visual()), tmp_path / "file.safetensors"
    values = getattr(cache.score_map, name).at[1, 2].set(value)
    bad = dataclasses.replace(cache.score_map, **{name: values})
    with pytest.raises(ValueError, match=message):
        vkq_jax.save_score_map(path, bad)
    with pytest.raises(ValueError, match=message):
        vkq_jax.save_cache(path, dataclasses.replace(cache, score_map=bad))


def test_a_slope_without_its_shift_is_one_clear_error(tmp_path, as_users_run_it):
    path, whole = tmp_path / "map.safetensors", mapped(empty()).score_map
    with pytest.raises(
        ValueError, match=r"shift .* got float32 \[1, 4\] beside slope float32 \[3, 4\]"
    ):
        vkq_jax.save_score_map(path, dataclasses.replace(whole, shift=whole.shift[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, structure: arrays.pop("score map.shift"), "expected an array score map.sh"),
        (lambda arrays, structure: structure["fields"].pop("quant"), "expected fields .*'quant'"),
        (lambda arrays, structure: structure.update(fields=3), "unknown entry"),
        (lambda arrays, structure: structure.update(type="Nothing"), ".*uses the type Nothing"),
        (lambda arrays, structure: structure.update(type="Dense"), "expected fields .* of Dense"),
        (lambda arrays, structure: structure.clear(), "unknown entry {}"),
    ],
)
def test_an_inconsistent_file_is_one_clear_error(tmp_path, change, message):
    path = tmp_path / "map.safetensors"
    vkq_jax.save_score_map(path, mapped(empty()).score_map)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    arrays, structure = load_file(path), json.loads(metadata["structure"])
    change(arrays, structure)
    save_file(arrays, path, metadata | {"structure": json.dumps(structure)})
    with pytest.raises(ValueError, match=f"map.safetensors: {message}"):
        vkq_jax.load_score_map(path)
    save_file(arrays, path, {"format": metadata["format"]})
    with pytest.raises(ValueError, match="is not a score map written by vkq_jax"):
        vkq_jax.load_score_map(path)


# Presets of one kind of codes differ in their bits: one of each kind.
@pytest.mark.parametrize(
    "quant",
    ["vkq-1bit", "signs-1bit", "quantile-1bit", "calibquant-1bit", "kivi-2bit", "vidkv-1.5bit",
     "turboquant-2.5bit", "none"],
)  # fmt: skip
def test_saved_and_restored(tmp_path, quant):
    cache = with_visual(quant)
    vkq_jax.save_cache(tmp_path / "cache.safetensors", cache)
    restored = vkq_jax.load_cache(tmp_path / "cache.safetensors")
    chex.assert_trees_all_equal(restored, cache)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = vkq_jax.load_cache(
        tmp_path / "cache.safetensors",
        shardings=lambda cache: jax.tree.map(lambda _: device, cache),
    )
    chex.assert_trees_all_equal(placed, cache)  # each row has counted towards the checksum
    assert restored.quant == cache.quant
    assert [path.name for path in tmp_path.iterdir()] == ["cache.safetensors"]


def test_damaged_and_foreign_files_are_one_clear_error(tmp_path):
    path = tmp_path / "cache.safetensors"
    vkq_jax.save_cache(path, with_visual())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is damaged"):
        vkq_jax.load_cache(path)
    with pytest.raises(FileNotFoundError, match="no cache file at"):
        vkq_jax.load_cache(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("quant", "bits"),
    [("none", 32.0), ("minmax-1bit", 1 + 32 / 40), ("vkq-1bit", None), ("kivi-2bit", None)],
)
def test_bytes_are_the_sum_of_live_buffers(quant, bits):
    cache = with_visual(quant)
    nbytes = vkq_jax.cache_nbytes(cache)
    leaves = jax.tree.leaves([getattr(cache.visual[0], x) for x in ("key", "value", "class_map")])
    assert nbytes.visual == sum(leaf.nbytes for leaf in leaves)
    assert nbytes.text == cache.text.key.nbytes + cache.text.value.nbytes
    elements = 2 * LAYERS * BATCH * HEADS * 40 * DIM
    assert nbytes.visual_full_precision == 4 * elements
    if bits is not None:  # 16 channels fill half of a 32-bit word: padding counts
        padded = 2.0 if bits < 8 else 1.0
        codes = (1 if bits < 8 else bits) * padded
        tables = 32 / 40 if bits < 8 else 0.0
        assert nbytes.visual * 8 == pytest.approx(elements * (codes + tables))


def test_no_visual_tokens_no_visual_bytes():
    assert vkq_jax.cache_nbytes(empty()).visual == 0
    assert vkq_jax.cache_nbytes(empty()).visual_reduction == 0.0


@pytest.mark.parametrize(
    "name", ["num_layers", "batch", "num_kv_heads", "head_dim", "cache_length"]
)
def test_sizes_are_checked(name):
    sizes = {"num_layers": 1, "batch": 1, "num_kv_heads": 1, "head_dim": 8, "cache_length": 4}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        vkq_jax.empty_cache(**{**sizes, name: 0}, quant=vkq_jax.resolve("none"))
