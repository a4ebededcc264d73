"""Measurements of `vkq inspect`."""

import dataclasses
import errno
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import vkq_jax
from models.generation.prefill import prefill
from tests.support.tiny_llava import (
    CONFIG,
    VISUAL_TOKENS,
    WINDOWED,
    batch,
    biased_model,
    prompt,
    tiny_model,
)
from vkq_apps.inspection import output_folder
from vkq_apps.inspection.attention import over_cache
from vkq_apps.inspection.capture import capture
from vkq_apps.inspection.coding import code, what_coding_leaves
from vkq_apps.inspection.layout import read_layout
from vkq_apps.inspection.measure import inspect_visual
from vkq_apps.inspection.output_folder import (
    SUMMARY,
    WRITTEN_BY,
    check_replaceable,
    complete_or_nothing,
)
from vkq_apps.inspection.pictures import patch_maps, seen_pictures
from vkq_apps.inspection.plots.style import choose_layers
from vkq_apps.inspection.ranges import FRACTIONS, channel_ranges
from vkq_apps.inspection.summary import raw_arrays, summarize
from vkq_jax.bits import rotation

SCALE = CONFIG.text.logits_scale
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 3, 4, 2, 16
INPUTS = batch(prompt(3, "image", 4, "image", 5))


MIXED = vkq_jax.per_layer("signs-1bit", {0: "none", (1, 1): "kivi-2bit"})
QUANTS = {"mixed": MIXED.settle(LAYERS, KV_HEADS)}


@functools.cache
def caught():
    (found,) = capture(tiny_model(), INPUTS)
    return found


@functools.cache
def inspection(quant: str):
    settings = QUANTS.get(quant) or vkq_jax.resolve(quant)
    (found,) = inspect_visual(tiny_model(), INPUTS, settings)
    return found


def test_captures_what_a_full_precision_cache_holds():
    quant = vkq_jax.resolve("none")
    _, cache = prefill(tiny_model(), INPUTS, quant=quant, cache_length=12)
    (bank,) = cache.visual
    assert caught().key.shape == (LAYERS, KV_HEADS, 2 * VISUAL_TOKENS, HEAD_DIM)
    np.testing.assert_allclose(caught().key, bank.key.values[:, 0], atol=1e-6)
    np.testing.assert_allclose(caught().value, bank.value.values[:, 0], atol=1e-6)
    np.testing.assert_allclose(caught().text_key, cache.text.key[:, 0], atol=1e-6)
    np.testing.assert_allclose(caught().text_value, cache.text.value[:, 0], atol=1e-6)


def test_captures_the_last_token_whatever_the_padding():
    padded = models.pad_to_multiple(INPUTS, 32)
    assert padded.input_ids.shape[1] > INPUTS.input_ids.shape[1]
    for got, expected in zip(
        *map(jax.tree.leaves, (capture(tiny_model(), padded), (caught(),))), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_capture_needs_one_prompt_with_an_image():
    with pytest.raises(ValueError, match="expected one prompt, got 2"):
        capture(tiny_model(), batch(prompt(3, "image"), prompt("image", 3)))
    with pytest.raises(ValueError, match="no visual tokens"):
        capture(tiny_model(), batch(prompt(5)))


@pytest.mark.parametrize(
    ("quant", "cap"),
    [("vkq-1bit", None), ("calibquant-1bit", 0.5), ("mixed", None), ("none", None)],
)
def test_weights_are_those_of_the_output(quant, cap):
    settings = QUANTS.get(quant) or vkq_jax.resolve(quant)

    @jax.jit
    def measured():
        cache = code(tiny_model(), caught(), settings, None)
        attended = over_cache(caught(), cache, logits_scale=SCALE, logits_soft_cap=cap)
        return attended, what_coding_leaves(caught(), cache).value_hat

    attended, value_hat = measured()
    np.testing.assert_allclose(attended.visual.sum(-1) + attended.text.sum(-1), 1, atol=1e-5)
    value = jnp.concatenate([value_hat, caught().text_value], axis=2)
    weights = jnp.concatenate([attended.visual, attended.text], -1)
    per_head = jnp.repeat(value, HEADS // KV_HEADS, axis=1)
    expected = jnp.einsum("lns,lnsh->lnh", weights, per_head)
    np.testing.assert_allclose(attended.output, expected, atol=1e-4)


def test_a_sliding_window_hides_what_generation_does_not_see():
    """Its last token sees 9 positions in layers 0 and 2: five of text, four of the second image."""
    model = tiny_model(config=WINDOWED)
    (windowed,) = capture(model, INPUTS)
    assert windowed.visual_start.tolist() == [28, 0, 28]
    assert windowed.text_start.tolist() == [7, 0, 7]
    (found,) = inspect_visual(model, INPUTS, vkq_jax.resolve("vkq-1bit"))
    for attended in (found.before, found.after):
        for layer in (0, 2):
            np.testing.assert_array_equal(attended.visual[layer, :, :28], 0)
            np.testing.assert_array_equal(attended.text[layer, :, :7], 0)
        assert (attended.visual[1] > 0).all()
        np.testing.assert_allclose(attended.visual.sum(-1) + attended.text.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, WINDOWED], ids=["no window", "window"])
def test_bytes_are_those_of_the_cache_that_generation_starts_from(config):
    """Positions too, where a window needs them, and no padding of the prompt."""
    model, quant = tiny_model(config=config), vkq_jax.resolve("vkq-1bit")
    _, cache = prefill(model, INPUTS, quant=quant, cache_length=12)
    (found,) = inspect_visual(model, models.pad_to_multiple(INPUTS, 32), quant)
    assert found.nbytes == vkq_jax.cache_nbytes(cache)


def test_nothing_changes_without_codes():
    none = inspection("none")
    for table in (none.key.error.relative_squared_error, none.output_error, none.moved):
        np.testing.assert_array_equal(table, 0)
    assert none.key.ranges.lowest is None
    assert none.nbytes.visual_reduction == 0


def test_more_bits_less_error():
    presets = ("minmax-1bit", "minmax-2bit", "minmax-8bit")
    for measure in (
        lambda x: x.key.error.relative_squared_error,
        lambda x: x.value.error.relative_squared_error,
        lambda x: x.output_error,
        lambda x: x.moved,
    ):
        coarse, medium, fine = (float(measure(inspection(name)).mean()) for name in presets)
        assert coarse > medium > fine >= 0


def test_layers_and_heads_are_measured_as_they_are_coded():
    mixed = inspection("mixed")
    for name in ("key", "value"):
        whole, signs, kivi = (
            getattr(inspection(n), name) for n in ("mixed", "signs-1bit", "kivi-2bit")
        )
        error, one, two = (x.error.relative_squared_error for x in (whole, signs, kivi))
        np.testing.assert_array_equal(error[0], 0)
        np.testing.assert_allclose(error[1], [one[1, 0], two[1, 1]], rtol=1e-4)
        np.testing.assert_allclose(error[2], one[2], rtol=1e-4)
        np.testing.assert_allclose(whole.ranges.lowest[1, 1], kivi.ranges.lowest[1, 1], rtol=1e-4)
        np.testing.assert_allclose(whole.ranges.lowest[2], signs.ranges.lowest[2], rtol=1e-4)
        assert jnp.isnan(whole.ranges.lowest[0]).all()
        np.testing.assert_array_equal(whole.ranges.quantiles, signs.ranges.quantiles)
    np.testing.assert_array_equal(mixed.output_error[0], 0)
    np.testing.assert_allclose(mixed.bits[0], 32)
    assert not mixed.key_bias


def test_keys_are_measured_without_the_bias_that_the_cache_keeps_out():
    model = biased_model()
    quant = vkq_jax.resolve("minmax-2bit")
    (found,) = inspect_visual(model, INPUTS, quant)
    assert found.key_bias
    _, cache = prefill(model, INPUTS, quant=quant, cache_length=12)
    (exact,) = capture(model, INPUTS)
    for layer in range(LAYERS):
        (bank,) = cache.layer(layer).visual
        key_hat, _ = bank.dequantize()
        share = cache.key_bias.of_layer(layer).rotated(bank.position)[0].transpose(1, 0, 2)
        error = vkq_jax.relative_squared_error(exact.key[layer] - share, key_hat[0])
        np.testing.assert_allclose(found.key.error.relative_squared_error[layer], error, rtol=1e-3)
    assert float(jnp.abs(share).max()) > 10 * float(jnp.abs(exact.key[-1] - share).max())
    assert float(found.moved.max()) < 0.5


@pytest.mark.parametrize("quant", ["vkq-1bit", "signs-1bit", "mixed", "none"])
def test_bits_of_tokens_add_up_to_the_bytes_of_the_cache(quant):
    bits = inspection(quant).bits
    elements = 2 * LAYERS * KV_HEADS * 2 * VISUAL_TOKENS * HEAD_DIM
    assert bits.shape == (LAYERS, 2 * VISUAL_TOKENS)
    assert float(bits.mean()) == pytest.approx(8 * inspection(quant).nbytes.visual / elements)
    # Classes of tokens are what makes tokens differ.
    assert bool(jnp.ptp(bits, axis=1).max() > 0.5) == (quant == "vkq-1bit")


def test_tokens_with_more_bits_have_less_error():
    measured = inspection("vkq-1bit")
    few, many = (
        float(measured.key.error_of_tokens[chosen].mean())
        for chosen in (measured.bits < measured.bits.mean(), measured.bits > measured.bits.mean())
    )
    assert many < few
    whole = measured.key.error.relative_squared_error.mean()
    assert float(measured.key.error_of_tokens.mean()) == pytest.approx(float(whole), rel=0.5)


def test_levels_of_min_max_codes_are_the_extremes():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 8)), jnp.float32)
    config = vkq_jax.LevelCodes(bits=2, table_dtype="float32")
    tensor = vkq_jax.quantize(x, config)
    ranges = channel_ranges(x, tensor.dequantize(), tensor)
    np.testing.assert_allclose(ranges.lowest, x.min(1), atol=1e-6)
    np.testing.assert_allclose(ranges.highest, x.max(1), atol=1e-6)
    np.testing.assert_allclose(ranges.quantiles[2], np.median(x, axis=1), atol=1e-6)
    assert ranges.quantiles.shape == (len(FRACTIONS), 2, 8)
    assert ranges.coded_quantiles is None


def test_levels_of_rotated_sign_codes_lie_around_the_rotated_centre():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 16)) + 3.0, jnp.float32)
    tensor = vkq_jax.quantize(x, vkq_jax.SignCodes(table_dtype="float32"))
    ranges = channel_ranges(x, tensor.dequantize(), tensor)
    scale = np.median(np.asarray(tensor.token_scale, np.float32))
    centre = rotation.rotate(tensor.centre)[0]
    np.testing.assert_allclose(ranges.lowest, centre - scale, atol=1e-4)
    np.testing.assert_allclose(ranges.highest, centre + scale, atol=1e-4)
    expected = np.median(rotation.rotate(x), axis=0)
    np.testing.assert_allclose(ranges.coded_quantiles[2], expected, atol=1e-5)


def test_patch_maps_leave_out_the_class_token():
    vision = dataclasses.replace(CONFIG.vision, keep_class_token=True)
    weights = np.arange(2 * 17, dtype=np.float32)[None]
    maps = patch_maps(weights, vision)
    assert maps.shape == (1, 2, 4, 4)
    assert maps[0, 1, 0, 0] == 18
    assert maps[0, 0, 0, 1] == 2
    assert patch_maps(weights[:, :32], CONFIG.vision)[0, 1, 0, 0] == 16


def test_seen_pictures_undo_normalization():
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    pixels = np.moveaxis((picture / 255 - mean) / std, -1, 1)
    np.testing.assert_array_equal(seen_pictures(pixels, mean, std, CONFIG.vision), picture)
    vision = dataclasses.replace(CONFIG.vision, patch_size=5)
    assert seen_pictures(pixels, mean, std, vision).shape == (1, 15, 15, 3)


def test_layout_has_no_gaps():
    ids = np.array([1, 9, 9, 2, 3, 9, 9])
    segments = read_layout(ids, 9, lambda tokens: [f"t{token}" for token in tokens])
    assert [(s.start, s.stop, s.text) for s in segments] == [
        (0, 1, ("t1",)),
        (1, 3, None),
        (3, 5, ("t2", "t3")),
        (5, 7, None),
    ]


def test_summary_is_json_and_means_are_means():
    segments = read_layout(np.asarray(INPUTS.input_ids)[0], CONFIG.image_token_id, list)
    record = json.loads(json.dumps(summarize([inspection("vkq-1bit")], segments)))
    assert record["visual_tokens"] == 2 * VISUAL_TOKENS
    assert record["visual_spans"] == [[3, 16], [23, 16]]
    assert record["visual_kv_bytes"] < record["visual_kv_bytes_full_precision"]
    assert len(record["layers"]) == LAYERS
    assert len(record["layers"][0]["key_error"]) == KV_HEADS
    assert len(record["layers"][0]["output_error"]) == HEADS
    for name, mean in record["mean"].items():
        figures = [layer[name] for layer in record["layers"]]
        assert mean == pytest.approx(np.mean(figures), rel=1e-4)
        assert record["median"][name] == pytest.approx(np.median(figures), rel=1e-4)
    assert "key_coded_quantiles" not in raw_arrays([inspection("vkq-1bit")])
    arrays = raw_arrays([inspection("signs-1bit")])
    assert arrays["weights_after"].shape == (LAYERS, HEADS, 2 * VISUAL_TOKENS)
    assert arrays["key_coded_quantiles"].shape == (5, LAYERS, KV_HEADS, HEAD_DIM)
    assert "key_lowest" not in raw_arrays([inspection("none")])


def test_summary_refuses_what_is_not_finite():
    segments = read_layout(np.asarray(INPUTS.input_ids)[0], CONFIG.image_token_id, list)
    broken = dataclasses.replace(
        inspection("vkq-1bit"), output_error=jnp.ones((LAYERS, HEADS)).at[1, 2].set(jnp.nan)
    )
    with pytest.raises(ValueError, match="output_error of layer 1 is not finite"):
        summarize([broken], segments)


@pytest.mark.parametrize(("layers", "chosen"), [(2, [0, 1]), (32, [0, 4, 9, 13, 18, 22, 27, 31])])
def test_layers_shown(layers, chosen):
    assert choose_layers(layers) == chosen


def fill(folder, content="new"):
    (folder / "plot.png").write_text(content)
    summary = {"written_by": WRITTEN_BY, "files": [SUMMARY, "plot.png"]}
    (folder / SUMMARY).write_text(json.dumps(summary))


def test_folder_appears_when_all_is_written(tmp_path):
    target = tmp_path / "a" / "b"
    with complete_or_nothing(target) as folder:
        fill(folder)
        assert not target.exists()
    assert {path.name for path in target.iterdir()} == {SUMMARY, "plot.png"}
    with complete_or_nothing(target) as folder:
        fill(folder, "newer")
    assert (target / "plot.png").read_text() == "newer"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_is_replaced_where_no_two_can_be_exchanged_in_one_step(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "_exchange", lambda one, other: False)
    target = tmp_path / "out"
    for text in ("old", "new"):
        with complete_or_nothing(target) as folder:
            fill(folder, text)
        assert (target / "plot.png").read_text() == text

    def lose_the_new_one():
        with complete_or_nothing(target) as folder:
            fill(folder, "newer")
            moved = functools.partial(folder.rename, tmp_path / "moved")
            monkeypatch.setattr(output_folder, "check_replaceable", lambda _: moved())

    with pytest.raises(OSError, match="cannot be written"):
        lose_the_new_one()
    assert (target / "plot.png").read_text() == "new"


def test_a_failure_leaves_what_was_there(tmp_path):
    target = tmp_path / "out"
    with complete_or_nothing(target) as folder:
        fill(folder)

    def stop_half_way():
        with complete_or_nothing(target) as folder:
            fill(folder, "half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop_half_way()
    assert (target / "plot.png").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch):
    check_replaceable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []

    def read_only(prefix, dir):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}123")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(ValueError, match="Read-only file system") as caught:
        check_replaceable(tmp_path / "a" / "b")
    message = f"{tmp_path}/a/b: expected a place that can be written to, "
    assert str(caught.value) == message + f"got 'Read-only file system' in {tmp_path}"


def test_a_link_to_itself_is_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop, a link that leads in a circle"):
        check_replaceable(tmp_path / "loop")


def test_foreign_files_are_never_replaced(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with complete_or_nothing(target) as folder:  # empty: fine
        fill(folder)
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"did not write its 'thesis\.txt'"):
        complete_or_nothing(target).__enter__()
    with pytest.raises(ValueError, match="is not a folder"):
        complete_or_nothing(target / "thesis.txt").__enter__()
