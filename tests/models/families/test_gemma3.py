"""Gemma 3: settings, processing, windows of conversations."""

import numpy as np
import pytest
import transformers

import models
from models.families.gemma3.config import Gemma3Config
from models.prompts.processor import processor_of
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint

SIZE, PER_IMAGE = 16, 4
BEGIN, END, SOFT = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
BEGIN_ID = len(WORDS)
IMAGE = BEGIN_ID + 2
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text }}{% endif %}{% endfor %} "
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}ASSISTANT:"
)


def config_json(*, text=None, **changes):
    return {
        "model_type": "gemma3",
        "mm_tokens_per_image": PER_IMAGE,
        "boi_token_index": BEGIN_ID,
        "eoi_token_index": BEGIN_ID + 1,
        "image_token_index": IMAGE,
        "eos_token_id": 2,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 4,
        },
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        }
        | (text or {}),
        **changes,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma3")
    write_processor(
        folder,
        special=(BEGIN, END, SOFT),
        image_processor={
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "do_pan_and_scan": True,
        },
        tokenizer={
            "extra_special_tokens": {"boi_token": BEGIN, "eoi_token": END, "image_token": SOFT}
        },
        template=TEMPLATE,
    )
    return write_random_checkpoint(folder, config_json())


def test_ids_and_pixels_are_those_of_the_real_processor(model):
    processor = processor_of(model)
    real = transformers.Gemma3Processor(
        processor.image_processor, processor.tokenizer, image_seq_length=PER_IMAGE
    )
    pictures = [random_picture(20, 45), random_picture(9, 9, seed=1)]
    text = f"what {BEGIN} is this {BEGIN} ?"
    expected = real(images=[pictures], text=[text], return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.pixel_values, expected["pixel_values"])
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(again.attention_group, got.attention_group)
    with pytest.raises(ValueError, match="token_type_ids: expected 1 at image tokens"):
        models.prepare(model, **expected | {"token_type_ids": 0 * expected["token_type_ids"]})


def test_tokens_of_a_picture_see_each_other(model):
    mark = models.chat_prompt(model, "what is this ?")
    inputs = models.prepare(model, prompts=[mark, "red"], images=[random_picture(8, 8), None])
    group = np.asarray(inputs.attention_group)
    assert (group[0] == 0).sum() == PER_IMAGE
    assert ((group == 0) == inputs.visual_mask).all()
    assert (group[1] == -1).all()


@pytest.mark.ci
def test_a_conversation_whose_window_leaves_pictures_behind(model):
    """The whole conversation at once and from its cache; sliding layers see 8 tokens."""
    first = models.prepare(
        model,
        prompts=models.chat_prompt(model, "what is this ?", num_images=2),
        images=[random_picture(8, 8), random_picture(9, 8, seed=1)],
    )
    answer = models.generate(model, first, quant="none", max_new_tokens=3, stop_tokens=())
    later = models.prepare(
        model,
        prompts=models.chat_prompt(model, "what red ?", later_turn=True),
        images=random_picture(8, 11, seed=2),
        later_turn=True,
    )
    got = models.generate(model, later, cache=answer.cache, max_new_tokens=3, stop_tokens=())
    whole = models.prepare(
        model,
        input_ids=np.concatenate([first.input_ids, answer.tokens, later.input_ids], axis=1),
        pixel_values=np.concatenate([first.pixel_values, later.pixel_values]),
    )
    expected = models.generate(model, whole, quant="none", max_new_tokens=3, stop_tokens=())
    np.testing.assert_array_equal(got.tokens, expected.tokens)


OLD = {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
NEW = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}


def test_old_and_new_names_of_ropes_and_layers_mean_the_same():
    stretched = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    old = Gemma3Config.from_hf(config_json(text=OLD | stretched)).text
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window_pattern": 6}
    assert Gemma3Config.from_hf(config_json(text=NEW | kinds)).text == old
    assert (old.rope.factor, old.rope.theta) == (8.0, 1e6)
    assert old.sliding_rope.theta == 1e4
    assert old.full_layers == (1,)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": {"attn_logit_softcapping": 50.0}}, "text_config.attn_logit_softcapping=50.0"),
        ({"text": {"final_logit_softcapping": 30.0}}, "text_config.final_logit_softcapping=30.0"),
        ({"text": {"use_bidirectional_attention": True}}, "use_bidirectional_attention=True"),
        ({"text": {"rope_parameters": {"rope_type": "linear"}}}, "rope_parameters has rope_type"),
        (
            {"text": {"rope_parameters": {"full_attention": {"truncate": False}}}},
            "rope_parameters.full_attention.truncate=false",
        ),
        ({"text": {"model_type": "llama"}}, "text_config.model_type='llama'"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type"),
    ],
)
def test_what_is_not_supported_is_named(changes, named):
    with pytest.raises(NotImplementedError) as error:
        Gemma3Config.from_hf(config_json(**changes))
    assert named in str(error.value)


def test_pooling_that_cannot_be():
    with pytest.raises(ValueError, match="mm_tokens_per_image: expected a square"):
        Gemma3Config.from_hf(config_json(mm_tokens_per_image=5))
