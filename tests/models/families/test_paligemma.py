"""PaliGemma: settings, processing, prompts that see themselves both ways."""

import numpy as np
import pytest
import transformers
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import models
from models.calibration.folder import CalibrationFolder
from models.calibration.judging import divergences
from models.families.paligemma.config import PaliGemmaConfig
from models.prompts.processor import processor_of
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from vkq_jax.settings.presets import presets

SIZE, PER_IMAGE = 16, 4
IMAGE = len(WORDS)


def config_json(*, text=None, **changes):
    return {
        "model_type": "paligemma",
        "image_token_index": IMAGE,
        "projection_dim": 16,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 8,
        },
        "text_config": {
            "model_type": "gemma2",
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 4,
            "use_bidirectional_attention": True,
            "attn_logit_softcapping": 2.0,
        }
        | (text or {}),
        **changes,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paligemma")
    write_processor(
        folder,
        special=("<image>",),
        image_processor={
            "image_processor_type": "SiglipImageProcessor",
            "image_seq_length": PER_IMAGE,
            "size": {"height": SIZE, "width": SIZE},
        },
    )
    return write_random_checkpoint(folder, config_json())


def test_ids_and_pixels_are_those_of_the_real_processor(model):
    folder = model.source
    real = transformers.PaliGemmaProcessor(
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    pictures = [random_picture(20, 45), random_picture(9, 9, seed=1)]
    text = models.chat_prompt(model, "what is this ?", num_images=2)
    assert text == "<image><image>what is this ?"
    expected = real(images=[pictures], text=[text], return_tensors="np", add_special_tokens=False)
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.pixel_values, expected["pixel_values"])
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(again.attention_group, got.attention_group)
    assert (np.asarray(got.attention_group) == 0).all()


def test_bos_is_written_once(model):
    tokenizer = processor_of(model).tokenizer
    for text in ("what is", "<s>what is"):
        got = models.prepare(model, prompts=text).input_ids[0]
        assert tokenizer.convert_ids_to_tokens(got.tolist()) == ["<s>", "what", "is"]


def test_pictures_that_know_the_question_are_not_coded_before_it(model):
    prompts = [models.chat_prompt(model, "what is this ?", num_images=n) for n in (1, 0)]
    inputs = models.prepare(model, prompts=prompts, images=[random_picture(8, 8), None])
    with pytest.raises(NotImplementedError, match="visual tokens attend to the question"):
        models.generate(model, inputs, max_new_tokens=1, quantize_at="image")


def test_a_later_turn_without_pictures_sees_what_lies_before_it(model):
    first = models.prepare(
        model, prompts=models.chat_prompt(model, "red ?"), images=random_picture(8, 8)
    )
    answer = models.generate(model, first, quant="none", max_new_tokens=2, stop_tokens=())
    later = models.prepare(model, prompts="what is", later_turn=True)
    got = models.generate(model, later, cache=answer.cache, max_new_tokens=3, stop_tokens=())
    ids = np.concatenate([first.input_ids, answer.tokens, later.input_ids], axis=1)
    types = np.ones_like(ids)
    types[:, : first.input_ids.shape[1]] = 0
    whole = models.prepare(
        model, input_ids=ids, token_type_ids=types, pixel_values=first.pixel_values
    )
    expected = models.generate(model, whole, quant="none", max_new_tokens=3, stop_tokens=())
    np.testing.assert_array_equal(got.tokens, expected.tokens)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (None, "token_type_ids is missing"),
        ([[0, 0]], r"expected zeros and ones \(1, 3\), got int64 \(1, 2\)"),
        ([[0, 2, 0]], "expected zeros and ones"),
    ],
)
def test_token_types_say_what_sees_what(model, types, message):
    with pytest.raises(ValueError, match=message):
        models.prepare(model, input_ids=[[5, 6, 7]], token_type_ids=types)


def test_settings_of_both_versions():
    second = PaliGemmaConfig.from_hf(config_json()).text
    assert (second.attn_logit_softcapping, second.final_logit_softcapping) == (2.0, 30.0)
    assert second.groups_cross_window
    first = PaliGemmaConfig.from_hf(
        config_json(text={"model_type": "gemma", "sliding_window": None})
    ).text
    assert (first.attn_logit_softcapping, first.final_logit_softcapping) == (None, None)
    assert first.sliding_window is None
    plain = PaliGemmaConfig.from_hf({"model_type": "paligemma"})
    assert (plain.text.num_hidden_layers, plain.vision.num_features) == (18, 256)
    with pytest.raises(ValueError, match=r"projection_dim: expected text_config.hidden_size=16"):
        PaliGemmaConfig.from_hf(config_json(projection_dim=8))
    growing = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(NotImplementedError, match=r"rope_type='dynamic'; supported for this"):
        PaliGemmaConfig.from_hf(config_json(text={"rope_parameters": growing}))


def test_plans_of_codes_are_compared_once_the_question_is_read(model):
    inputs = models.prepare(
        model, prompts=models.chat_prompt(model, "what is this ?"), images=random_picture(8, 8)
    )
    plans = [(presets[name], None) for name in ("none", "signs-1bit")]
    exact, coded = divergences(model, [inputs], plans, steps=2, kept=CalibrationFolder(None))
    assert 0 == exact < coded
    with pytest.raises(NotImplementedError, match="visual tokens attend to the question"):
        models.calibrate_scores(model, inputs, quantize_at="image")
