"""Qwen-VL without PyTorch: settings, inputs, shapes; one conversation from a folder to answers."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
import vkq_jax
from models import Model
from models.families.qwen_vl.config import QwenVLConfig
from models.families.qwen_vl.family import FAMILY
from models.families.qwen_vl.model import QwenVLModel
from models.generation.prefill import prefill
from models.generation.recoding import recode
from models.inputs.batch import Inputs
from models.inputs.padding import pad_to_buckets
from models.inputs.pixels import bucket
from models.layers.linear import Maker
from models.layers.rope_config import MRope, RopeKind
from models.loading import save_weights
from models.prompts.arrays import inputs_from_arrays
from tests.support.calibrated import check_calibration
from tests.support.qwen_vl import END, IMAGE, START, batch, config_json, write_processor

RNG = np.random.default_rng(0)


def read(model_type="qwen2_5_vl", **changes) -> QwenVLConfig:
    return QwenVLConfig.from_hf(config_json(model_type, **changes))


def build(config: QwenVLConfig) -> Model:
    module = QwenVLModel(config, Maker.create(nnx.Rngs(0)))
    model = Model.from_module(module)
    # Wide enough for answers to depend on the pictures.
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, model)


def inputs_of(config: QwenVLConfig, rows) -> Inputs:
    arrays = batch(rows, np.random.default_rng(3), frames_apart=config.frames_apart)
    return inputs_from_arrays(config, **arrays)


def test_flat_and_nested_settings_read_the_same():
    """Files of transformers 4 hold the decoder's settings beside all others, and call it mrope."""
    nested = config_json("qwen2_5_vl")
    text = nested["text_config"]
    sections = text["rope_parameters"]["mrope_section"]
    flat = {name: value for name, value in nested.items() if name != "text_config"} | {
        **{name: value for name, value in text.items() if name != "rope_parameters"},
        "rope_theta": 5000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
    }
    flat["vision_config"] = flat["vision_config"] | {"model_type": "qwen2_5_vl", "in_chans": 3}
    config = QwenVLConfig.from_hf(flat)
    assert config == QwenVLConfig.from_hf(nested)
    assert config.text.rope.mrope == MRope((1, 2, 1))
    assert config.vision.window == 4
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    flat["rope_scaling"] = yarn | {"mrope_section": sections}
    rope = QwenVLConfig.from_hf(flat).text.rope
    assert (rope.kind, rope.mrope) == (RopeKind.YARN, MRope((1, 2, 1)))
    assert hash(config) == hash(QwenVLConfig.from_hf(nested))


@pytest.mark.parametrize(
    ("model_type", "part", "change", "message"),
    [
        ("qwen2_5_vl", "vision_config", {"window_size": 7}, "window_size: expected at least"),
        ("qwen2_5_vl", "vision_config", {"num_heads": 8}, r"a multiple of 4 \* num_heads=32"),
        ("qwen2_5_vl", "vision_config", {"out_hidden_size": 31}, "features of .*=32 channels"),
        ("qwen2_vl", "vision_config", {"in_channels": 1}, "in_channels=1; supported: 3"),
        ("qwen3_vl", "vision_config", {"num_position_embeddings": 24}, "expected a square"),
        ("qwen3_vl", "vision_config", {"deepstack_visual_indexes": [2, 3]}, "below depth=3"),
        ("qwen3_vl", "vision_config", {"rope_parameters": {"rope_type": "yarn"}}, "supported: 'ax"),
        ("qwen3_vl", "text_config", {"model_type": "llama"}, "supported: 'qwen3_vl', 'qwen3_vl_t"),
        (
            "qwen2_vl",
            "text_config",
            {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1]}},
            "mrope_section: expected three numbers",
        ),
        (
            "qwen2_vl",
            "text_config",
            {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 2]}},
            "expected numbers that sum to 4",
        ),
        (
            "qwen3_vl",
            "text_config",
            {"rope_parameters": {"rope_type": "default", "mrope_interleaved": False}},
            "mrope_interleaved=False; supported for this model_type: True",
        ),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(model_type, part, change, message):
    content = config_json(model_type)
    content[part] = content[part] | change
    with pytest.raises((ValueError, NotImplementedError), match=message):
        QwenVLConfig.from_hf(content)


def test_positions_of_pictures_and_clips():
    """Text goes on behind the longer side of a picture; a clip's times do not count there."""
    config = read()
    arrays = batch([[2, ("image", 4, 6), 1, ("video", 3, 2, 2), 1]], RNG)
    got = inputs_from_arrays(config, **arrays, second_per_grid_ts=[1.5])
    expected = [[0] * 3, [1] * 3, [2] * 3]  # two of text, and the start token
    expected += [[3, 3 + row, 3 + column] for row in range(2) for column in range(3)]
    expected += [[6] * 3, [7] * 3, [8] * 3]  # end, text, start
    expected += [[9 + time, 9, 9] for time in (0, 4, 9)]  # 3 a second
    expected += [[10] * 3, [11] * 3]
    np.testing.assert_array_equal(got.positions[0], expected)
    np.testing.assert_array_equal(got.next_position, [12])
    np.testing.assert_array_equal(got.vision_layout.sizes, [[4, 6], [2, 2], [2, 2], [2, 2]])


def test_frames_of_qwen3_lie_apart():
    arrays = batch([[("video", 2, 2, 4)]], RNG, frames_apart=True)
    got = inputs_from_arrays(read("qwen3_vl"), **arrays)
    assert got.positions[0, :, 0].tolist() == [0, 1, 2, 2, 4, 5, 6, 7, 7, 9]
    assert got.positions[0, :, 2].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


GOOD = batch([[2, ("image", 4, 6), 1, ("video", 1, 2, 2)]], RNG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_grid_thw": None}, "image_grid_thw is missing: pixel_values needs it"),
        ({"pixel_values_videos": None}, "pixel_values_videos is missing: video_grid_thw needs it"),
        ({"image_grid_thw": [[1, 4, 5]]}, "image_grid_thw: expected .* multiples of 2"),
        ({"image_grid_thw": [[1, 4, 8]]}, "expected the 32 patches of image_grid_thw, got 24"),
        ({"video_grid_thw": [[1.0, 2, 2]]}, "video_grid_thw: expected integers"),
        ({"pixel_values": GOOD["pixel_values"][:, 1:]}, r"pixel_values: expected floats \[patches"),
        ({"mm_token_type_ids": 0 * GOOD["input_ids"]}, "mm_token_type_ids: expected"),
        ({"second_per_grid_ts": [1.0, 2.0]}, "second_per_grid_ts: expected 1 numbers"),
        ({"second_per_grid_ts": [-1.0]}, "second_per_grid_ts: expected 1 numbers of at least 0"),
        ({"pixel_values": None, "image_grid_thw": None}, "image tokens without an image"),
        ({"input_ids": np.where(GOOD["input_ids"] == IMAGE, 3, GOOD["input_ids"])}, "no image tok"),
    ],
)
def test_arrays_that_do_not_fit_are_one_clear_error(changes, message):
    arrays = GOOD | changes
    if "input_ids" in changes:
        del arrays["mm_token_type_ids"]
    with pytest.raises(ValueError, match=message):
        inputs_from_arrays(read(), **arrays)


def test_tokens_of_a_picture_lie_side_by_side():
    arrays = batch([[("image", 4, 4), 2]], RNG)
    del arrays["mm_token_type_ids"]
    arrays["input_ids"][0, [2, 6]] = arrays["input_ids"][0, [6, 2]]
    with pytest.raises(ValueError, match="expected 4 tokens 40 side by side"):
        inputs_from_arrays(read(), **arrays)


def test_ten_sizes_compile_as_often_as_they_fill_buckets():
    """The shapes of pictures come in four to each doubling, prompts with them."""
    config = read("qwen3_vl")
    sizes = [
        (2 * rows, 2 * columns)
        for rows, columns in (
            (2, 5),
            (3, 3),
            (2, 4),
            (3, 4),
            (4, 4),
            (3, 5),
            (2, 6),
            (2, 7),
            (5, 2),
            (4, 3),
        )
    ]
    buckets = {bucket(rows * columns // 4) for rows, columns in sizes}
    assert len(buckets) == 5  # 8, 9 to 10, to 12, to 14, to 16
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=len(buckets))
    def read_all(inputs):
        return [x.sum() for x in jax.tree.leaves(inputs)]

    for size in sizes:
        inputs = pad_to_buckets(inputs_of(config, [[2, ("image", *size), 3]]), visual=True)
        assert inputs.pixel_values.shape[1] <= 5 / 4 * size[0] * size[1]
        read_all(inputs)


def test_padding_of_pictures_changes_nothing():
    """A picture between others, and one alone, give the same features."""
    config = read("qwen2_5_vl")
    module = build(config).module()
    rows = [[1, ("image", 4, 6)], [1, ("image", 10, 8), ("video", 3, 2, 2)]]
    together = inputs_of(config, rows)
    features = module.image_features(together.pixel_values, together.vision_layout)
    pixels = together.pixel_values[:1, :24]
    alone = inputs_from_arrays(
        config,
        input_ids=[[START, *[IMAGE] * 6, END]],
        pixel_values=np.asarray(pixels[0]),
        image_grid_thw=[[1, 4, 6]],
    )
    single = module.image_features(alone.pixel_values, alone.vision_layout)
    assert np.abs(single[:6] - features[:6]).max() < 1e-5 * np.abs(single).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    content = config_json("qwen2_5_vl")
    (folder / "config.json").write_text(json.dumps(content))
    save_weights(build(QwenVLConfig.from_hf(content)), folder)
    write_processor(folder)
    return folder


PICTURES = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in ((30, 21), (9, 40), (16, 16))]


def test_a_conversation_from_a_folder(folder):
    """Pictures of two turns, the second behind a cache, are read as in one prompt."""
    model = models.load(folder, dtype=jnp.float32)
    first = models.chat_prompt(model, "what is this ?", num_images=2)
    assert first.count("<|vision_start|><|image_pad|><|vision_end|>") == 2
    inputs = models.prepare(model, images=PICTURES[:2], prompts=first)
    assert int(inputs.visual_mask.sum()) == 4 * 3 + 1 * 5
    options = {"max_new_tokens": 4, "stop_tokens": (), "quant": "none"}
    answer = models.generate(model, inputs, **options)
    later = models.chat_prompt(model, "and that ?", later_turn=True)
    second = models.prepare(model, images=PICTURES[2], prompts=later, later_turn=True)
    got = models.generate(model, second, cache=answer.cache, **options)

    spans = [inputs.positions[0], answer.tokens[0], second.positions[0]]
    whole = inputs_from_arrays(
        model.config,
        input_ids=np.concatenate([inputs.input_ids, answer.tokens, second.input_ids], axis=1),
        pixel_values=np.concatenate(
            [
                np.asarray(each.pixel_values[frame, :count])
                for each, frame, count in ((inputs, 0, 48), (inputs, 1, 20), (second, 0, 16))
            ]
        ),
        image_grid_thw=[[1, 8, 6], [1, 2, 10], [1, 4, 4]],
    )
    assert whole.positions.shape[1] == sum(map(len, spans))
    expected = models.generate(model, whole, **options)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.cache.position, expected.cache.position)


@pytest.mark.ci
def test_pictures_in_one_bit(folder):
    """Pictures of one size map over, each in its own call of a batch of one."""
    model = models.load(folder, dtype=jnp.float32)
    prompt = models.chat_prompt(model, "what is this ?")
    pair = [models.prepare(model, images=PICTURES[0][::step], prompts=prompt) for step in (1, -1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *pair)

    def answer(inputs):
        generation = models.generate(
            model, inputs, max_new_tokens=3, stop_tokens=(), quantize_at="image"
        )
        return generation.tokens

    got = jax.vmap(answer)(stacked)
    for tokens, inputs in zip(got, pair, strict=True):
        np.testing.assert_array_equal(tokens, answer(inputs))


def test_prefill_compiles_for_buckets_only(folder):
    model = models.load(folder, dtype=jnp.float32)
    before = prefill._cache_size()
    for height in (56, 58, 60, 64):  # 7 or 8 rows of tokens, 4 columns
        inputs = models.prepare(
            model, images=np.zeros((height // 2, 16, 3), np.uint8), prompts="<image> what"
        )
        models.generate(model, inputs, max_new_tokens=1, stop_tokens=())
    assert prefill._cache_size() - before <= 2


def test_no_other_field_is_taken():
    assert "token_type_ids" not in FAMILY.array_names
    assert FAMILY.features_per_image(read()) is None


@pytest.fixture(scope="module")
def hybrid():
    config = read("qwen3_5")
    rows = [[3, ("image", 4, 6), 2, ("image", 4, 4), 4], [5]]
    return build(config), inputs_of(config, rows)


@pytest.mark.ci  # compiles a hybrid decoder three times
def test_layers_with_a_state_of_their_own_hold_no_visual_tokens(hybrid):
    """Bucketing pads on the right, and the question is read behind the pictures' state."""
    model, inputs = hybrid
    options = {"max_new_tokens": 3, "stop_tokens": ()}
    coded = models.generate(model, inputs, quant="signs-1bit", quantize_at="image", **options)
    assert coded.cache.recurrent.layers == model.config.text.linear.layers == (0, 2, 3)
    assert coded.cache.parts[0].num_layers == 2
    assert [n.tolist() for n in coded.cache.visual_lengths] == [[6 + 4, 0]]
    whole = inputs.followed_by(coded.tokens, jnp.ones_like(coded.tokens, bool))
    logits = jnp.argmax(models.forward(model, whole), -1)
    # The sequence without a picture has nothing coded.
    np.testing.assert_array_equal(logits[1, -4:-1], coded.tokens[1])


@pytest.mark.ci  # compiles five programs
def test_a_later_turn_goes_on_from_the_state(hybrid):
    model, inputs = hybrid
    options = {"max_new_tokens": 2, "stop_tokens": ()}
    first = models.generate(model, inputs, quant="none", **options)
    later = inputs_of(model.config, [[4], [3]])
    again = models.generate(model, later, cache=first.cache, **options)
    joined = inputs.followed_by(first.tokens, jnp.ones_like(first.tokens, bool))
    joined = joined.followed_by(later.input_ids, later.mask)
    logits = models.forward(model, joined)
    np.testing.assert_array_equal(again.tokens[:, 0], jnp.argmax(logits[:, -1], -1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layer_types": ["full_attention"] * 5}, NotImplementedError, "supported: both of"),
        ({"layer_types": ["full_attention"] * 4}, ValueError, "each of the 5 layers, got 4"),
        ({"linear_num_value_heads": 3}, ValueError, "a multiple of linear_num_key_heads=2"),
        ({"model_type": "qwen3_5_moe_text"}, NotImplementedError, "supported: 'qwen3_5'"),
    ],
)
def test_settings_of_linear_attention_that_cannot_be_are_named(change, error, message):
    text = config_json("qwen3_5")["text_config"] | change
    with pytest.raises(error, match=message):
        read("qwen3_5", text_config=text)


@pytest.mark.ci  # compiles prefill, decoding and calibration
def test_layers_beside_those_with_a_state_are_calibrated(hybrid):
    model, _ = hybrid
    inputs = inputs_of(model.config, [[2, ("image", 4, 6), 3], [("image", 4, 4), 4]])
    codes = check_calibration(model, inputs, lambda cache: [part.tables for part in cache.parts])
    assert codes.presets[0].tables.key.codebook.shape[0] == 2


@pytest.mark.ci  # compiles a hybrid decoder twice
def test_layers_beside_those_with_a_state_have_settings_of_their_own(hybrid, tmp_path):
    """As when a cache in full precision is coded; layers with a state lie in the range, too."""
    model, inputs = hybrid
    settings = vkq_jax.per_layer("none", {range(2, 5): "signs-1bit"})
    options = {"max_new_tokens": 1, "stop_tokens": ()}
    mixed = models.generate(model, inputs, quant=settings, **options).cache
    assert [cells.layers for cells in mixed.cells] == [(1,), (4,)]
    assert mixed.quant == settings.settle(5, 2)
    whole = models.generate(model, inputs, quant="none", **options).cache
    again = recode(model, whole, mixed.quant)
    for got, expected in zip(again.parts, mixed.parts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, got.visual, expected.visual)
    vkq_jax.save_cache(tmp_path / "cache", mixed)
    loaded = vkq_jax.load_cache(tmp_path / "cache")
    jax.tree.map(np.testing.assert_array_equal, loaded, mixed)
    later = inputs_of(model.config, [[4], [3]])
    models.generate(model, later, cache=loaded, max_new_tokens=1, stop_tokens=())
