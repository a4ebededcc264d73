"""GLM-4.1V, GLM-4.6V and GLM-OCR: settings and refusals; against transformers' models (parity)."""

import numpy as np
import pytest

import models
from models.families.glm4v.clips import Glm4vClipProcessing, Glm46vClipProcessing
from models.families.glm4v.config import Glm4vConfig
from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.qwen_vl import visuals
from tests.support.random_checkpoint import write_random_checkpoint

IMAGE, VIDEO, START, END, CLIP, CLIP_END = 40, 41, 42, 43, 44, 45
ROPE = {"rope_type": "default", "rope_theta": 5000.0}


def config_json(model_type="glm4v", text=None, vision=None, **changes):
    return {
        "model_type": model_type,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "image_start_token_id": START,
        "image_end_token_id": END,
        "video_start_token_id": CLIP,
        "video_end_token_id": CLIP_END,
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "image_size": 20,
            "out_hidden_size": 32,
            "intermediate_size": 20,
            **(vision or {}),
        },
        "text_config": {
            "model_type": "glm4v_text",
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "eos_token_id": 1,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 2, 1]},
            **(text or {}),
        },
        **changes,
    }


def batch(rows, rng):
    """A processor's output: numbers of text tokens, (rows, columns), (frames, rows, columns)."""
    images, clips, made = [], [], []
    for row in rows:
        ids = []
        for part in row:
            if isinstance(part, int):
                ids += rng.integers(2, IMAGE, part).tolist()
                continue
            frame = [START, *[IMAGE] * (part[-2] * part[-1] // 4), END]
            if len(part) == 2:
                images.append((1, *part))
                ids += frame
            else:
                clips.append(part)
                times = range(5, 5 + part[0])
                ids += [CLIP, *[token for time in times for token in (*frame, time)], CLIP_END]
        opened = np.cumsum(np.equal(ids, CLIP)) > np.cumsum(np.equal(ids, CLIP_END))
        types = np.where(np.equal(ids, IMAGE), np.where(opened, 2, 1), 0)
        made.append((np.array(ids), np.ones(len(ids), int), types))
    width = max(len(ids) for ids, *_ in made)
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    arrays = {
        name: np.stack([np.pad(row[i], (width - len(row[i]), 0)) for row in made])
        for i, name in enumerate(names)
    }
    for grids, pixels, grid in (
        (images, "pixel_values", "image_grid_thw"),
        (clips, "pixel_values_videos", "video_grid_thw"),
    ):
        if grids:
            arrays |= {pixels: visuals(grids, rng), grid: np.array(grids)}
    return arrays


EXPERTS = {
    "model_type": "glm4v_moe_text",
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 3,
    "topk_group": 2,
    "moe_intermediate_size": 8,
    "routed_scaling_factor": 1.5,
}
OCR = {"model_type": "glm_ocr_text", "head_dim": 24}
ROPE_OF_16 = ROPE | {"mrope_section": [3, 3, 2]}
OCR_ROPE = {"rope_parameters": ROPE | {"mrope_section": [3, 5, 4]}}
PICTURES = [[3, (4, 6), 5, (10, 8), 2], [4], [2, (8, 8), 3]]
CLIPS = [[3, (2, 4, 6), 5], [4], [2, (3, 4, 4), 1]]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, PICTURES),
        ({}, CLIPS),
        (
            {
                "model_type": "glm46v",
                "tie_word_embeddings": True,
                "vision": {"attention_bias": True, "rms_norm_eps": 1e-3, "hidden_act": "gelu"},
                "text": {
                    "num_key_value_heads": 2,
                    "rope_parameters": ROPE_OF_16,
                },
            },
            PICTURES,
        ),
        ({"model_type": "glm4v_moe", "text": EXPERTS}, PICTURES),
        (
            {
                "model_type": "glm46v",
                "text": EXPERTS
                | {"norm_topk_prob": False, "attention_bias": False, "first_k_dense_replace": 2},
            },
            CLIPS,
        ),
        ({"model_type": "glm_ocr", "text": OCR | OCR_ROPE}, PICTURES),
        (
            {
                "model_type": "glm_ocr",
                "tie_word_embeddings": True,
                "vision": {"attention_bias": False, "hidden_act": "gelu"},
                "text": {"model_type": "glm_ocr_text", "rope_parameters": ROPE_OF_16},
            },
            CLIPS,
        ),
    ],
)
def test_logits_and_greedy_tokens(changes, rows, tmp_path):
    import transformers

    config = config_json(**changes)
    names = {"glm4v": "Glm4v", "glm46v": "Glm46V", "glm4v_moe": "Glm4vMoe"}
    names["glm_ocr"] = "GlmOcr"
    name = names[config["model_type"]]
    settings = getattr(transformers, f"{name}Config")(**config)
    hf = randomize(getattr(transformers, f"{name}ForConditionalGeneration")(settings))
    for part, buffer in hf.named_buffers():
        if part.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.3, 0.3)
    assert_parity(hf, save(hf, tmp_path), batch(rows, np.random.default_rng(0)))


def test_pictures_and_clips_in_one_batch(tmp_path):
    """transformers refuses such a batch; names of weights go both ways."""
    model = write_random_checkpoint(tmp_path, config_json())
    arrays = batch([[3, (4, 6), 2, (2, 4, 4)]], np.random.default_rng(0))
    inputs = models.prepare(model, **arrays)
    assert inputs.visual_mask.sum() == 6 + 2 * 4
    assert np.asarray(inputs.pixel_values).shape[0] == 1 + 2


@pytest.mark.parametrize("processing", [Glm4vClipProcessing, Glm46vClipProcessing])
def test_a_number_of_frames_counts_where_no_rate_is_set(processing):
    kind = processing.settings
    asked = kind.read({"num_frames": 3, "fps": None})
    assert asked.sample(9, None) == [0, 4, 8]
    with pytest.raises(ValueError, match="expected at least num_frames=3 frames, got 2"):
        asked.sample(2, None)
    with pytest.raises(ValueError, match=r"does not say its own rate: give Clip\(frames, fps"):
        kind.read({}).sample(9, None)
    assert kind.read({"do_sample_frames": False}).sample(3, None) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"text": {"model_type": "glm4v_moe_text"}}, NotImplementedError, "'glm4v_moe_text'"),
        ({"vision": {"out_hidden_size": 16}}, ValueError, "text_config.hidden_size=32"),
        ({"text": {"attention_bias": False}}, NotImplementedError, "attention_bias=False"),
        ({"text": {"head_dim": 8}}, NotImplementedError, "head_dim=8; supported: 16, which is"),
        ({"model_type": "glm_ocr"}, NotImplementedError, "'glm4v_text'"),
        ({"model_type": "glm4v_moe", "text": EXPERTS | {"n_group": 4}}, ValueError, "n_group"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        Glm4vConfig.from_hf(config_json(**changes))


def test_a_head_dim_that_other_fields_say_too_is_taken():
    """transformers' class has no such field; files of the Hub have it."""
    stated = Glm4vConfig.from_hf(config_json(text={"head_dim": 16}))
    assert stated == Glm4vConfig.from_hf(config_json())
