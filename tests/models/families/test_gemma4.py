"""Gemma 4: settings, processing, refusals, caches of layers with unlike heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
import vkq_jax
from models.families.gemma4.clips import Gemma4ClipProcessing
from models.families.gemma4.config import Gemma4Config
from models.layers.linear import Maker
from models.prompts.processor import processor_of
from models.text.gemma4_block import PerLayerEmbedding
from tests.support.calibrated import check_calibration
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import unchecked

BEGIN, SOFT, END = "<|image>", "<|image|>", "<image|>"
SPECIAL = (BEGIN, SOFT, END, "<|video|>", "<|audio|>", "<|audio>", "<audio|>")
BEGIN_ID, IMAGE, END_ID, VIDEO, AUDIO = range(len(WORDS), len(WORDS) + 5)
SLIDING, FULL = "sliding_attention", "full_attention"
POOL, PATCH = 2, 4


def config_json(*, text=None, vision=None, **changes):
    return {
        "model_type": "gemma4",
        "boi_token_id": BEGIN_ID,
        "image_token_id": IMAGE,
        "eoi_token_id": END_ID,
        "video_token_id": VIDEO,
        "audio_token_id": AUDIO,
        "eos_token_id": 2,
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "patch_size": PATCH,
            "pooling_kernel_size": POOL,
            "position_embedding_size": 300,
            "use_clipped_linears": True,
            "standardize": True,
        }
        | (vision or {}),
        "text_config": {
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "layer_types": [SLIDING, FULL] * 2,
            "sliding_window": 40,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 32,
            "use_bidirectional_attention": "vision",
        }
        | (text or {}),
        **changes,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma4")
    names = ("boi_token", "image_token", "eoi_token", None, "audio_token", "boa_token", "eoa_token")
    tokens = dict(zip(names, SPECIAL, strict=True))
    write_processor(
        folder,
        special=SPECIAL,
        image_processor={
            "image_processor_type": "Gemma4ImageProcessor",
            "patch_size": PATCH,
            "pooling_kernel_size": POOL,
            "max_soft_tokens": 70,
        },
        tokenizer={"extra_special_tokens": {k: v for k, v in tokens.items() if k}},
    )
    return write_random_checkpoint(folder, config_json())


def real_processor(image_processor, tokenizer):
    """transformers' own, without its checks for parts that need torch."""
    theirs = pytest.importorskip(  # where transformers 5.17 imports torch
        "transformers.models.gemma4.processing_gemma4", exc_type=ImportError
    )

    return unchecked(theirs.Gemma4Processor)(None, image_processor, tokenizer, None)


def test_ids_and_pixels_are_those_of_the_real_processor(model):
    processor = processor_of(model)
    real = real_processor(processor.image_processor, processor.tokenizer)
    pictures = [random_picture(20, 45), random_picture(9, 9, seed=1)]
    text = f"what {SOFT} is this {SOFT} ?"
    expected = real(images=[pictures], text=[text], return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(got.pixel_values, again.pixel_values)
    np.testing.assert_array_equal(got.attention_group, again.attention_group)
    with pytest.raises(ValueError, match="mm_token_type_ids: expected"):
        models.prepare(model, **expected | {"mm_token_type_ids": 0 * expected["input_ids"]})
    places = np.array(expected["image_position_ids"])
    places[0, 1] = 7
    with pytest.raises(ValueError, match="image_position_ids: expected column and row"):
        models.prepare(model, **expected | {"image_position_ids": places})


def test_a_picture_is_answered_in_one_bit_and_its_cache_saved(model, tmp_path):
    mark = models.chat_prompt(model, "what is this ?")
    inputs = models.prepare(model, prompts=[mark, "red"], images=[random_picture(8, 8), None])
    answer = models.generate(model, inputs, quant="signs-1bit", max_new_tokens=3, stop_tokens=())
    assert answer.lengths.tolist() == [3, 3]
    cache = answer.cache
    # Two layers of four have keys of their own, each with other heads.
    assert [part.text.key.shape[::2] for part in cache.parts] == [(1, 2, 8), (1, 1, 16)]
    assert cache.quant == vkq_jax.presets["signs-1bit"]
    vkq_jax.save_cache(tmp_path / "cache", cache)
    loaded = vkq_jax.load_cache(tmp_path / "cache")
    jax.tree.map(np.testing.assert_array_equal, loaded, cache)


@pytest.mark.parametrize("place", [("all", 0), (0, 1), (1, 0), (1, 1)])
def test_settings_of_heads_are_refused_where_layers_have_unlike_numbers_of_them(model, place):
    inputs = models.prepare(model, prompts="what is this ?")
    quant = vkq_jax.per_layer("vkq-1bit", {place: "none"})
    with pytest.raises(NotImplementedError, match=r"whole layers for a model whose .* 2 or 1 KV"):
        models.generate(model, inputs, quant=quant, max_new_tokens=1)


def test_each_layer_s_own_inputs_are_those_of_the_token_and_of_its_embedding():
    text = Gemma4Config.from_hf(config_json()).text
    module = PerLayerEmbedding(text, text.per_layer_inputs, Maker.create(nnx.Rngs(0)))
    hidden, tokens = np.full((1, 3, 16), 2.0, np.float32), np.asarray([[4, 0, 31]], np.int32)
    hidden += np.arange(16, dtype=np.float32)
    got = module(jnp.asarray(hidden), jnp.asarray(tokens))
    of_token = np.asarray(module.embed_tokens_per_layer(jnp.asarray(tokens)), np.float64) * 4**0.5
    seen = np.asarray(hidden, np.float64) @ module.per_layer_model_projection.kernel[...] / 16**0.5
    seen = seen.reshape(1, 3, 4, 4)
    seen /= np.sqrt(np.square(seen).mean(-1, keepdims=True) + text.rms_norm_eps)
    expected = (seen + of_token.reshape(1, 3, 4, 4)) / 2**0.5
    np.testing.assert_allclose(got, np.moveaxis(expected, 2, 0), atol=1e-5)


def test_speech_is_refused_by_name(model):
    with pytest.raises(NotImplementedError, match=r"audio tokens .*supported: text, images, video"):
        models.prepare(model, input_ids=[[3, AUDIO, 4]])


def test_clips_that_do_not_fit_are_named(model):
    places = np.tile(np.indices((2, 2))[::-1].reshape(2, -1).T, (3, 1, 1))
    arrays = {
        "input_ids": [[3, VIDEO, 4, VIDEO, VIDEO]],
        "pixel_values_videos": np.zeros((3, 4, 3 * PATCH**2), np.float32),
        "video_position_ids": places,
        "num_frames_per_video": np.array([1, 2]),
    }
    assert models.prepare(model, **arrays).visual_mask.sum() == 3
    with pytest.raises(ValueError, match="num_frames_per_video: expected frames of each clip, 3"):
        models.prepare(model, **arrays | {"num_frames_per_video": np.array([1, 1])})
    with pytest.raises(ValueError, match=r"2 videos, which need 3 video tokens .*and 1 video"):
        models.prepare(model, **arrays | {"input_ids": [[3, VIDEO]]})
    del arrays["video_position_ids"]
    with pytest.raises(ValueError, match="video_position_ids: the processor gives both together"):
        models.prepare(model, **arrays)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(30, 45, (48, 80)), (9, 900, (8, 560)), (900, 9, (560, 8))]
)
def test_frames_are_resized_to_whole_blocks(height, width, expected):
    settings = Gemma4ClipProcessing.settings.read(
        {"patch_size": PATCH, "pooling_kernel_size": POOL}
    )
    assert settings.resized(1, height, width) == expected


def test_sizes_of_layers_in_old_and_new_files_mean_the_same():
    old = config_json()
    new = config_json()
    for name in ("global_head_dim", "num_global_key_value_heads"):
        del new["text_config"][name]
    own = {"head_dim": 16, "num_key_value_heads": 1}
    # Numbers of ten layers and more have two digits.
    new["text_config"]["per_layer_config"] = {"01": own, "3": own}
    first, second = (Gemma4Config.from_hf(each).text for each in (old, new))
    assert first == second
    assert first.stacks == {
        "layers": (0,),
        "full_layers": (1,),
        "shared_layers": (2,),
        "shared_full_layers": (3,),
    }
    assert (first.rope.rotated_pairs, first.rope.head_dim) == (2, 16)
    assert first.sliding_rope.head_dim == 8


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"vision_config": None}, NotImplementedError, "vision_config=null"),
        ({"text": {"use_bidirectional_attention": "all"}}, NotImplementedError, "'all'"),
        (
            {"text": {"per_layer_config": {"0": {}}}},
            NotImplementedError,
            "has layers 0;",
        ),
        ({"text": {"num_kv_shared_layers": 3}}, ValueError, "num_kv_shared_layers: expected"),
        ({"text": {"enable_moe_block": True}}, ValueError, "with enable_moe_block"),
        ({"text": {"num_global_key_value_heads": 3}}, ValueError, "expected a divisor"),
        ({"vision": {"head_dim": 6}}, ValueError, "head_dim a multiple of 4"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, error, named):
    with pytest.raises(error) as raised:
        Gemma4Config.from_hf(config_json(**changes))
    assert named in str(raised.value)


@pytest.mark.ci  # compiles prefill, decoding and calibration
def test_layers_of_both_sizes_are_calibrated(model):
    mark = models.chat_prompt(model, "what is this ?")
    pictures = [random_picture(8, 8), random_picture(20, 45)]
    inputs = models.prepare(model, prompts=[mark, mark], images=pictures)
    codes = check_calibration(model, inputs, lambda cache: [part.tables for part in cache.parts])
    # Two layers have keys of their own, which the two behind them read.
    assert [own.key.codebook.shape for own in codes.presets[0].tables] == [
        (1, 2, 4, 8),
        (1, 1, 4, 16),
    ]
    mixed = vkq_jax.per_layer("vkq-1bit", {0: "none"})
    cache = models.generate(model, inputs, quant=mixed, tables=codes, max_new_tokens=1).cache
    assert [part.tables is None for part in cache.parts] == [True, False]
    own = models.calibrate_scores(model, inputs, max_new_tokens=1)
    assert own.slope.shape == (2, 2)
    models.generate(model, inputs, quant="calibquant-1bit", score_map=own, max_new_tokens=1)
