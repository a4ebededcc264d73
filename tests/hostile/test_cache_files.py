"""Cache and score-map files by field and by bytes: refused, or what was saved.

A file whose checksum no longer fits is never taken for another cache. One that was written with a
fitting checksum is either refused or a cache that attention can read.
"""

import dataclasses
import random

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import models
import vkq_jax
from tests.support.caches import Shape, attend, random_layer
from tests.support.mutated_files import mutated_bytes, mutated_fields, refused_or
from vkq_jax.cache.layered import LayeredCache, split_layers
from vkq_jax.cache.recurrent import RecurrentState
from vkq_jax.files.stored_form import digest_of
from vkq_jax.settings.layer_groups import Cells

SHAPE = Shape(visual=((40, (40, 11)),))


def both(codes):
    return vkq_jax.KVQuantConfig(codes, codes)


SETTINGS = {
    "signs": vkq_jax.presets["signs-1bit"],
    "levels": vkq_jax.presets["calibquant-1bit"],
    "levels per token": vkq_jax.presets["kivi-2bit"],
    "full precision": vkq_jax.presets["none"],
    "classes of tokens": both(vkq_jax.DictionaryCodes(centres=3, smoothing=0.5)),
    "tables": both(vkq_jax.DictionaryCodes(codebook=5, learned=True)),
}


pytestmark = pytest.mark.usefixtures("as_users_run_it")


def whole_cache(quant, positions):
    """Two layers, with a score map, positions if asked for."""
    layers = [random_layer(SHAPE, quant, seed)[1] for seed in (0, 1)]
    banks = [layer.visual[0] for layer in layers]

    def stacked(*parts):
        return jax.tree.map(lambda *x: jnp.stack(x), *parts)

    lengths = jnp.asarray([40, 11], jnp.int32)
    place = jnp.broadcast_to(jnp.arange(40, dtype=jnp.int32)[None], (2, 40))
    bank = vkq_jax.VisualBank(
        stacked(*(bank.key for bank in banks)),
        stacked(*(bank.value for bank in banks)),
        lengths,
        jnp.where(place < lengths[:, None], place, 0) if positions else None,
        stacked(*(bank.class_map for bank in banks)),
    )
    text = vkq_jax.TextBank(
        stacked(*(layer.text.key for layer in layers)),
        stacked(*(layer.text.value for layer in layers)),
        layers[0].text.length,
        lengths[:, None] + place[:, :9] if positions else None,
    )
    slope = jnp.linspace(0.2, 0.9, 8, dtype=jnp.float32).reshape(2, 4)
    return vkq_jax.KVCache(
        (bank,),
        text,
        position=lengths + text.length,
        calibration_skipped=jnp.zeros(2, jnp.int32),
        quant=quant,
        score_map=vkq_jax.ScoreMap(slope, 1 - slope, quant=quant),
        tables=stacked(*(layer.tables for layer in layers)),
    )


def unlike_caches():
    """Text in 8 bits, and layers and heads that are not alike, by name."""
    quant = vkq_jax.presets["calibquant-1bit"]
    cache = whole_cache(quant, positions=True)
    eight = dataclasses.replace(cache, text=cache.text.in_8_bits())
    cells = Cells((0, 1), ((0,), (1,))), Cells((0, 1), ((1,), (0,)))
    layered = split_layers(eight, vkq_jax.LayerGroups(tuple((one, quant) for one in cells)))
    text = dataclasses.replace(
        cache.text,
        **{
            name: jnp.zeros_like(getattr(cache.text, name)[..., :1, :]) for name in ("key", "value")
        },
        length=jnp.zeros(2, jnp.int32),
        index=jnp.zeros((2, 1), jnp.int32),
    )
    # Numbers of tokens count text alone there, and those of a picture's are its image token's.
    own = dataclasses.replace(cache.text, index=jnp.tile(jnp.arange(9, dtype=jnp.int32), (2, 1)))
    (bank,) = cache.visual
    picture = dataclasses.replace(bank, index=jnp.zeros_like(bank.index))
    apart = (
        dataclasses.replace(cache, visual=(), text=own),
        dataclasses.replace(cache, visual=(picture,), text=text),
    )
    states = RecurrentState((jnp.ones((2, 2, 3, 5)), jnp.zeros((2, 2, 4, 3, 3))), (1, 3))
    return {
        "text in 8 bits": eight,
        "heads": layered,
        "cross-attention": LayeredCache(apart, (Cells((0, 2)), Cells((1, 3))), cross=True),
        "recurrent": LayeredCache((eight,), (Cells((0, 2)),), recurrent=states),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A cache for each of the settings and the file that holds it."""
    return save_all(
        tmp_path_factory.mktemp("saved"),
        {
            name: whole_cache(quant, positions=number % 2 == 0)
            for number, (name, quant) in enumerate(SETTINGS.items())
        },
    )


@pytest.fixture(scope="module")
def all_saved(saved, tmp_path_factory):
    """Those, and caches whose text is coded or whose layers are unlike."""
    return saved + save_all(tmp_path_factory.mktemp("unlike"), unlike_caches())


def save_all(folder, caches):
    for name, cache in caches.items():
        vkq_jax.save_cache(folder / f"{name}.safetensors", cache)
    return [(cache, folder / f"{name}.safetensors") for name, cache in caches.items()]


def equal_to(cache):
    def accept(loaded):
        chex.assert_trees_all_equal(loaded, cache)
        assert jax.tree.structure(loaded) == jax.tree.structure(cache)

    return accept


def can_be_read(loaded):
    """Attention over each layer is finite: nothing in the cache contradicts the rest."""
    for layer in range(loaded.num_layers):
        for heads, view in vkq_jax.heads_of_layer(loaded, layer):
            batch, num_heads, _, head_dim = view.text.key.shape
            assert num_heads == len(heads)
            if view.score_map is not None:
                num_heads = view.score_map.slope.shape[0]
            query = jnp.ones((batch, 1, num_heads, head_dim), jnp.float32)
            attended = attend(query, view)
            assert attended.output.shape == query.shape
            assert np.isfinite(np.asarray(attended.output)).all()
    vkq_jax.take_sequences(loaded, [0])
    vkq_jax.grow(loaded, loaded.cache_length + 1)


def on_a_mesh(path):
    """The cache of a file, read straight to a mesh of one device."""
    return models.load_cache(path, "data=1,model=1")


def any_loader(rng):
    """`load_cache` of this library or that of models, which reads parts of arrays."""
    return on_a_mesh if rng.random() < 0.3 else vkq_jax.load_cache


def test_mutated_bytes_are_refused_or_harmless(all_saved, tmp_path, cases, one_clear_error):
    path = tmp_path / "cache.safetensors"
    for case in cases(40):
        rng = random.Random(f"bytes/{case}")
        cache, original = rng.choice(all_saved)
        path.write_bytes(mutated_bytes(original.read_bytes(), rng))
        refused_or(path, one_clear_error, equal_to(cache), any_loader(rng))


def test_mutated_fields_are_refused_or_harmless(all_saved, tmp_path, cases, one_clear_error):
    path = tmp_path / "cache.safetensors"
    for case in cases(25):
        rng = random.Random(f"fields/{case}")
        cache, original = rng.choice(all_saved)
        arrays, metadata = mutated_fields(original, rng)
        save_file(arrays, path, metadata)
        refused_or(path, one_clear_error, equal_to(cache), any_loader(rng))


def test_mutated_fields_with_a_new_checksum_are_refused_or_consistent(
    all_saved, tmp_path, cases, one_clear_error
):
    path = tmp_path / "cache.safetensors"
    for case in cases(25):
        rng = random.Random(f"checksum/{case}")
        _, original = rng.choice(all_saved)
        arrays, metadata = mutated_fields(original, rng)
        metadata["sha256"] = digest_of(metadata["structure"], arrays)
        save_file(arrays, path, metadata)
        refused_or(path, one_clear_error, can_be_read, any_loader(rng))


def changed(value, rng):
    """Another value for a static field."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice([value + 1, value - 1, value * 2, -value, float(value) + 0.5, str(value)])
    if isinstance(value, tuple):
        return rng.choice([value[1:], (*value, 1), (*value[:-1], value[-1] + 1), list(value)])
    return rng.choice([None, 3, "x", vkq_jax.Granularity.PER_TOKEN])


def test_every_static_field_of_a_tensor_agrees_with_the_settings(
    saved, tmp_path, cases, one_clear_error
):
    path = tmp_path / "cache.safetensors"
    for case in cases(12):
        rng = random.Random(f"static/{case}")
        cache, _ = rng.choice([x for x in saved if x[0].quant != vkq_jax.presets["none"]])
        side, bank = rng.choice(["key", "value"]), cache.visual[0]
        tensor = getattr(bank, side)
        names = [f.name for f in dataclasses.fields(tensor) if f.metadata.get("static")]
        name = rng.choice(names)
        value = changed(getattr(tensor, name), rng)
        if value == getattr(tensor, name) and type(value) is type(getattr(tensor, name)):
            continue
        tensor = dataclasses.replace(tensor, **{name: value})
        bank = dataclasses.replace(bank, **{side: tensor})
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # any; no file is written
            vkq_jax.save_cache(path, dataclasses.replace(cache, visual=(bank,)))
        one_clear_error(caught.value)
        assert not path.exists(), (case, name, value)


def test_what_is_written_can_be_read(saved, tmp_path, one_clear_error):
    """Objects that were made by hand and do not fit together are refused where they are written."""
    path, (cache, _) = tmp_path / "file", saved[1]
    slope = np.ones((2, 4), np.float32)
    maps = {
        "every slope finite and not negative": vkq_jax.ScoreMap(-slope, slope),
        "shift must be Float": vkq_jax.ScoreMap(slope, slope[:1]),
        "every shift finite": vkq_jax.ScoreMap(slope, slope * np.nan),
    }
    for message, score_map in maps.items():
        with pytest.raises(ValueError, match=message) as caught:
            vkq_jax.save_score_map(path, score_map)
        one_clear_error(caught.value)
    text, position = cache.text, cache.position
    caches = {
        "cache.text.key must be finite": {
            "text": dataclasses.replace(text, key=text.key * jnp.nan)
        },
        "position must be a number of at least 0": {"position": position - 100},
        "position must be Int32": {"position": position.astype(jnp.float32)},
        "text.length must be in": {"text": dataclasses.replace(text, length=text.length + 9)},
        "with the settings of the cache": {"quant": vkq_jax.presets["kivi-2bit"]},
    }
    for message, changes in caches.items():
        with pytest.raises(ValueError, match=message) as caught:
            vkq_jax.save_cache(path, dataclasses.replace(cache, **changes))
        one_clear_error(caught.value)
    with pytest.raises(ValueError, match="presets must be tuple") as caught:
        vkq_jax.save_tables(path, vkq_jax.CalibratedCodes(("x",), model="x"))  # type: ignore[arg-type]
    one_clear_error(caught.value)
    assert not list(tmp_path.iterdir())
    vkq_jax.save_score_map(path, vkq_jax.ScoreMap(slope, slope))  # arrays of NumPy may be
    assert vkq_jax.load_score_map(path).slope.dtype == jnp.float32


def test_parts_of_a_cache_are_of_the_same_sequences(all_saved, tmp_path, one_clear_error):
    cache = next(cache for cache, path in all_saved if path.stem == "heads")
    first, *others = cache.parts
    shorter, (bank,) = dataclasses.replace(first.text, length=first.text.length - 1), first.visual
    narrower = dataclasses.replace(bank, length=bank.length - 1)
    for name, part in (
        ("position", dataclasses.replace(first, position=first.position + 1)),
        (
            "text_length",
            dataclasses.replace(first, text=shorter),
        ),
        (
            "visual_lengths",
            dataclasses.replace(first, visual=(narrower,)),
        ),
        ("cache_length", vkq_jax.grow(first, first.cache_length + 1)),
    ):
        # Fewer tokens contradict the numbers of the other parts' tokens first.
        words = rf"expected the same {name} in all|text.index must be in"
        with pytest.raises(ValueError, match=words) as caught:
            vkq_jax.save_cache(tmp_path / "x", dataclasses.replace(cache, parts=(part, *others)))
        one_clear_error(caught.value)


def test_mutated_score_maps_are_refused_or_harmless(saved, tmp_path, cases, one_clear_error):
    original, path = tmp_path / "map.safetensors", tmp_path / "mutated.safetensors"
    whole = saved[1][0].score_map
    vkq_jax.save_score_map(original, whole)
    for case in cases(25):
        rng = random.Random(f"map/{case}")
        if rng.random() < 0.5:
            path.write_bytes(mutated_bytes(original.read_bytes(), rng))
            accept = equal_to(whole)
        else:
            arrays, metadata = mutated_fields(original, rng)
            metadata["sha256"] = digest_of(metadata["structure"], arrays)
            save_file(arrays, path, metadata)

            def accept(loaded):
                assert loaded.slope.shape == loaded.shift.shape
                assert bool(jnp.isfinite(loaded.slope).all() & jnp.isfinite(loaded.shift).all())

        refused_or(path, one_clear_error, accept, load=vkq_jax.load_score_map)
