"""Idefics3 and SmolVLM: processing, refusals, 1 bit; against transformers' models (parity)."""

import dataclasses

import jax
import numpy as np
import pytest

import models
from models.families.idefics3.clips import SmolVLMClipSettings
from models.families.idefics3.config import Idefics3Config
from models.families.idefics3.tiles import visual_inputs
from models.families.registry import family_of
from tests.support.hf_parity import assert_parity, assert_saved, randomize, save
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.rows import padded_rows

# Tiles of 4 x 4 patches, of which 2 x 2 become one visual token.
SIZE, PATCH, TILE_TOKENS = 12, 3, 4
TAGS = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
SPECIAL = [
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "\n",
    *TAGS,
]
IMAGE = len(WORDS)
RUN = [IMAGE] * TILE_TOKENS


def config_json(model_type="smolvlm", **changes):
    vision = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    return {
        "model_type": model_type,
        "image_token_id": IMAGE,
        "vision_config": vision | changes.pop("vision", {}),
        "text_config": text,
        **changes,
    }


def write_tiny_processor(folder, kind="SmolVLM", **settings):
    write_processor(
        folder,
        special=SPECIAL,
        image_processor={
            "image_processor_type": f"{kind}ImageProcessor",
            "size": {"longest_edge": 2 * SIZE},
            "max_image_size": {"longest_edge": SIZE},
            **settings,
        },
    )


def tiles(*lead, size=SIZE):
    return np.random.default_rng(1).normal(size=(*lead, 3, size, size)).astype(np.float32)


def theirs(model_type="smolvlm", **changes):
    import transformers

    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[model_type]
    config = getattr(transformers, f"{name}Config")(**config_json(model_type, **changes))
    return randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def rows_of_tiles(run=RUN):
    """Three tiles and one in the first row, none in the second, one in the third."""
    return padded_rows([3, run, 4, run, run, 5, run, 7], [8, 9, 10], [4, run, 6])


def padded_tiles(size=SIZE):
    """The tiles of `rows_of_tiles`; rows with fewer are padded with zeros."""
    pixels = tiles(3, 4, size=size)
    pixels[1], pixels[2, 1:] = 0, 0
    shown = np.broadcast_to(pixels.any(axis=(2, 3, 4), keepdims=True), pixels.shape)[:, :, 0]
    return {"pixel_values": pixels, "pixel_attention_mask": shown.astype(np.int64)}


def partly_shown(arrays):
    """Two tiles with padding at the bottom and right, one of which ends within a patch."""
    arrays["pixel_attention_mask"][0, 1, 7:] = 0
    arrays["pixel_attention_mask"][0, 2, :, 6:] = 0
    return arrays


@pytest.mark.parity
@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
def test_transformers_model_gives_the_same_logits_and_tokens(model_type, tmp_path):
    tied = model_type == "idefics3"
    hf = theirs(model_type, tie_word_embeddings=tied, vision={"hidden_act": "relu"} if tied else {})
    ours = save(hf, tmp_path)
    assert_parity(hf, ours, rows_of_tiles() | padded_tiles())
    assert_saved(hf, ours, tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("scale", "size", "partly"),
    [(2, SIZE, True), (1, 6 * PATCH, False), (4, SIZE + 1, True)],
)
def test_tiles_of_other_sizes_and_with_padding(scale, size, partly, tmp_path):
    import torch

    hf = theirs(scale_factor=scale)
    ours = save(hf, tmp_path)
    arrays = partly_shown(padded_tiles(size)) if partly else padded_tiles(size)
    arrays |= rows_of_tiles([IMAGE] * (size // PATCH // scale) ** 2)
    inputs = models.prepare(ours, **arrays)
    with torch.no_grad():
        tensors = {name: torch.tensor(value) for name, value in arrays.items()}
        expected = hf(**tensors).logits.numpy()
    got = np.asarray(models.forward(ours, inputs))
    assert np.abs(got - expected)[np.asarray(inputs.mask)].max() < 1e-4


@pytest.mark.parity
def test_positions_of_patches_are_those_of_transformers():
    """At sides up to 18, and at those of published models."""
    import torch
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    for side in (*range(1, 19), 26, 27, 32):
        config = Idefics3Config.from_hf(
            config_json(scale_factor=1, vision={"image_size": side, "patch_size": 1})
        )
        shown = np.zeros((side, side, side), bool)
        for last, each in enumerate(shown):
            each[: last + 1, : side - last] = True
        hf = SmolVLMVisionEmbeddings(
            config_hf := _EmbeddingConfig(hidden_size=1, image_size=side, patch_size=1)
        )
        hf.position_embedding.weight.data = torch.arange(side**2, dtype=torch.float32)[:, None]
        pixels = torch.zeros(side, 3, side, side)
        hf.patch_embedding.bias.data[:] = 0
        expected = hf(pixels, torch.tensor(shown))[..., 0].detach().numpy()
        assert config_hf.image_size == config.vision.image_size
        ids = np.full((1, side**3), IMAGE)
        arrays = {"pixel_values": tiles(side, size=side), "pixel_attention_mask": shown}
        got = visual_inputs(config, ids, ids > 0, arrays).layout
        positions = np.arange(side**2)[None] if got is None else got.positions[:side]
        np.testing.assert_array_equal(positions, expected)


@dataclasses.dataclass
class _EmbeddingConfig:
    hidden_size: int
    image_size: int
    patch_size: int
    num_channels: int = 3


def test_dense_layers_between_experts_have_the_numbers_of_the_file():
    experts = {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1}
    text = config_json()["text_config"] | experts
    text |= {"moe_intermediate_size": 4, "head_dim": 8, "mlp_only_layers": [1]}
    names = family_of("idefics3").weights(
        Idefics3Config.from_hf(config_json("idefics3", text_config=text))
    )
    for number, stack in ((0, "layers"), (1, "dense_layers")):
        key = f"model.text_model.layers.{number}.self_attn.q_proj.weight"
        canonical = f"text.{stack}.{number}.self_attn.q_proj.weight"
        assert names.canonical(key) == canonical
        assert names.to_published(canonical) == key


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smolvlm")
    write_tiny_processor(folder)
    return write_random_checkpoint(folder, config_json())


PICTURES = [random_picture(30, 21), random_picture(9, 90, seed=1), random_picture(5, 5, seed=2)]


@pytest.mark.parametrize("settings", [{}, {"do_image_splitting": False}, {"do_resize": False}])
def test_ids_and_tiles_are_those_of_the_real_processor(model, settings, tmp_path):
    """Idefics3's, whose strings SmolVLM's has too; that one wants num2words for videos."""
    from transformers import AutoTokenizer, Idefics3Processor
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    if settings:
        write_tiny_processor(tmp_path, "Idefics3", **settings)
        model = dataclasses.replace(model, source=str(tmp_path))
    real = Idefics3Processor(
        AutoImageProcessor.from_pretrained(model.source, backend="pil"),
        AutoTokenizer.from_pretrained(model.source),
        image_seq_len=TILE_TOKENS,
    )
    prompts, groups = ["what <image> is <image> ?", "<image> red"], [PICTURES[:2], PICTURES[2:]]
    padding = {"padding": True, "padding_side": "left"}
    expected = real(text=prompts, images=groups, return_tensors="np", **padding)
    got = models.prepare(model, prompts=prompts, images=groups)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.mask, expected["attention_mask"])
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(got.pixel_values, again.pixel_values)
    assert got.vision_layout is None
    assert again.vision_layout is None


def test_pictures_of_different_sizes(model):
    prompts = [models.chat_prompt(model, "what is this ?", num_images=n) for n in (2, 0)]
    inputs = models.prepare(model, prompts=prompts, images=[PICTURES[:2], None])
    # 2 x 2 tiles and 1 x 2, each with the whole behind them.
    assert inputs.visual_mask.sum(-1).tolist() == [(5 + 3) * TILE_TOKENS, 0]


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"vision": {"model_type": "clip_vision_model"}}, NotImplementedError, "vision_config.mod"),
        ({"vision": {"num_channels": 1}}, NotImplementedError, "vision_config.num_channels=1"),
        ({"text_config": {"model_type": "gpt2"}}, NotImplementedError, "model_type='gpt2'"),
        ({"scale_factor": 0}, ValueError, "scale_factor: expected an integer from 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, error, named):
    with pytest.raises(error, match=named):
        Idefics3Config.from_hf(config_json(**changes))


FULL = np.ones((1, 1, SIZE, SIZE), np.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": None}, "pixel_values is missing"),
        ({"pixel_values": tiles(1, 2)}, "pixel_attention_mask: expected zeros and ones"),
        ({"pixel_values": tiles(1, 1)[..., :6]}, "pixel_values: expected squares"),
        ({"pixel_values": tiles(1, 1, size=9)}, "expected sides that are multiples of .*=6 pixels"),
        ({"pixel_attention_mask": 2 * FULL}, "pixel_attention_mask: expected zeros and ones"),
        ({"pixel_attention_mask": 0 * FULL}, "pixel_attention_mask: expected 1 at the top left"),
        ({"pixel_values": 0 * tiles(1, 1), "pixel_attention_mask": 0 * FULL}, "without an image"),
        ({"pixel_values": tiles(1, 2), "pixel_attention_mask": None}, "more images than tokens"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(model, changes, message):
    arrays = {"pixel_values": tiles(1, 1), "pixel_attention_mask": FULL} | changes
    with pytest.raises(ValueError, match=message):
        models.prepare(model, input_ids=[[1, *RUN, 2]], **arrays)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_image_size": {"longest_edge": 9}}, "multiples of patch_size"),
        ({"max_image_size": {"longest_edge": 10**6}}, "max_image_size: expected longest_edge from"),
        ({"size": {"longest_edge": 40 * SIZE}}, "size: expected at most 128 tiles"),
        ({"do_resize": False}, "makes 200 tiles of 12 x 12"),
    ],
)
def test_pictures_and_image_settings_that_cannot_be_are_refused(tmp_path, settings, message, model):
    write_tiny_processor(tmp_path, **settings)
    model = dataclasses.replace(model, source=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        models.prepare(model, prompts="<image> red", images=random_picture(SIZE, 200 * SIZE))


def test_tiles_share_buckets_and_a_layout_is_made_only_where_it_is_needed(model):
    full = models.prepare(model, input_ids=[RUN * 9], pixel_values=tiles(9))
    assert full.pixel_values.shape[0] == 10
    assert full.vision_layout is None
    partly = models.prepare(
        model,
        input_ids=[RUN * 9],
        pixel_values=tiles(9),
        pixel_attention_mask=np.tril(np.ones((9, SIZE, SIZE))),
    )
    assert jax.tree.map(np.shape, partly.vision_layout).visible == (10, 16)


@pytest.mark.parametrize("side", [0, -1, 4097, 10**9, 16.0, "16", True, None])
def test_sides_of_frames_that_cannot_be_are_refused(side):
    settings = SmolVLMClipSettings.read({"max_image_size": {"longest_edge": side}})
    with pytest.raises(ValueError, match="expected longest_edge from 1 to 4096"):
        _ = settings.side


@pytest.mark.parametrize(("written", "side"), [(None, 364), ({"longest_edge": 4096}, 4096)])
def test_sides_of_frames(written, side):
    assert SmolVLMClipSettings.read({"max_image_size": written}).side == side
