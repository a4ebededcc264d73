"""InternVL: settings and names; against transformers' model and processor (parity)."""

import numpy as np
import pytest
from PIL import Image

import models
from models.families.internvl.config import InternVLConfig
from tests.support.hf_parity import assert_parity, assert_saved, randomize, save
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor
from tests.support.rows import padded_rows

SIZE, TILE_TOKENS, IMAGE = 28, 4, 60


def tiles(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def image_tokens(count):
    return [IMAGE] * (TILE_TOKENS * count)


def torch_model(*, text="Qwen2Config", vision=None, **changes):
    import transformers

    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    }
    if text.startswith("Qwen3"):
        sizes["head_dim"] = 12
    if text == "Qwen3MoeConfig":
        sizes |= {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    tower = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [SIZE, SIZE],
        "patch_size": [7, 7],
    }
    config = transformers.InternVLConfig(
        vision_config=tower | (vision or {}),
        text_config=getattr(transformers, text)(**sizes).to_dict(),
        image_token_id=IMAGE,
        **changes,
    )
    return randomize(transformers.InternVLForConditionalGeneration(config))


CASES = {
    "Qwen3-MoE": {"text": "Qwen3MoeConfig"},
    "Qwen2, tied": {},
    "Qwen3, RMS norms, norms of queries and keys, a final norm, untied": {
        "text": "Qwen3Config",
        "tie_word_embeddings": False,
        "vision": {
            "norm_type": "rms_norm",
            "use_qk_norm": True,
            "attention_bias": True,
            "use_mean_pooling": False,
        },
    },
    "Llama, another layer": {
        "text": "LlamaConfig",
        "vision_feature_layer": -2,
        "vision": {"use_mean_pooling": False, "use_mask_token": True, "hidden_act": "relu"},
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_transformers_model_gives_the_same_logits_and_tokens(name, tmp_path):
    theirs = torch_model(**CASES[name])
    ours = save(theirs, tmp_path, save_original_format="Llama" not in name)
    rows = padded_rows(
        [3, *image_tokens(3), 5, *image_tokens(1), 7], [8, 9, 10], [4, *image_tokens(1), 6]
    )
    assert_parity(theirs, ours, rows | {"pixel_values": tiles(5)})
    if "MoE" in name:  # transformers reads what is saved here
        assert_saved(theirs, ours, tmp_path)


TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for c in m.content %}"
    "{% if c.type == 'image' %}<IMG_CONTEXT> {% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endfor %} ASSISTANT:"
)


def config_json(**changes):
    return {
        "model_type": "internvl",
        "image_token_id": len(WORDS) + 2,
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [SIZE, SIZE],
            "patch_size": [7, 7],
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        **changes,
    }


def write_tiny_processor(folder):
    write_processor(
        folder,
        special=TOKENS,
        image_processor={
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "processor_class": "InternVLProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "crop_to_patches": False,
            "max_patches": 4,
        },
        tokenizer={
            "extra_special_tokens": {
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            }
        },
        template=TEMPLATE,
    )


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl")
    write_tiny_processor(folder)
    return write_random_checkpoint(folder, config_json())


def test_ids_and_tiles_are_those_of_the_real_processor(model):
    from transformers import InternVLProcessor

    # Videos need torch, so that there is no video processor.
    real = real_processor(
        model.source, InternVLProcessor, video_processor=None, image_seq_length=TILE_TOKENS
    )
    pictures = [picture(40, 90), picture(30, 30, seed=1)]
    text = "what <IMG_CONTEXT> is this <IMG_CONTEXT> ?"
    expected = real(images=pictures, text=[text], return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.pixel_values, expected["pixel_values"])
    assert got.pixel_values.shape[0] == 3 + 1
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(again.visual_mask, got.visual_mask)


def test_pictures_of_different_sizes(model):
    prompts = [models.chat_prompt(model, "what is this ?", num_images=n) for n in (2, 0)]
    pictures = [[picture(28, 140), picture(60, 60)], None]
    inputs = models.prepare(model, prompts=prompts, images=pictures)
    # 4 + 1 tiles and 4 + 1; two sizes share a bucket.
    assert inputs.pixel_values.shape[0] == 10
    assert inputs.visual_mask.sum(-1).tolist() == [10 * TILE_TOKENS, 0]


def test_the_tie_is_that_of_the_whole_file():
    tied = {"text_config": config_json()["text_config"] | {"tie_word_embeddings": True}}
    assert InternVLConfig.from_hf(config_json()).text.tie_word_embeddings
    untied = InternVLConfig.from_hf(config_json(**tied, tie_word_embeddings=False))
    assert not untied.text.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"downsample_ratio": 0.4}, "downsample_ratio=0.4"),
        ({"downsample_ratio": 1 / 3}, "downsample_ratio=0.33"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ({"text_config": {"model_type": "gpt_oss"}}, "text_config.model_type='gpt_oss'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, named):
    with pytest.raises(NotImplementedError, match=named):
        InternVLConfig.from_hf(config_json(**changes))


@pytest.mark.parametrize(
    ("tokens", "tiles_given", "message"),
    [(TILE_TOKENS, 2, "more images than tokens"), (TILE_TOKENS, 0, "tokens without an image")],
)
def test_tokens_that_do_not_match_the_tiles_are_refused(model, tokens, tiles_given, message):
    image = model.config.image_token_id
    pixels = tiles(tiles_given) if tiles_given else None
    with pytest.raises(ValueError, match=message):
        models.prepare(model, input_ids=[[1, *[image] * tokens]], pixel_values=pixels)


def test_a_tokenizer_without_the_tokens_around_a_picture_is_refused(tmp_path):
    write_tiny_processor(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = tmp_path / name
        file.write_text(file.read_text().replace("<img>", "<other>"))
    model = write_random_checkpoint(tmp_path, config_json())
    with pytest.raises(ValueError, match="no token <img>"):
        models.chat_prompt(model, "what ?")
