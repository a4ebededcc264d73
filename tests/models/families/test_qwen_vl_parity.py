"""Qwen-VL against transformers' PyTorch models."""

import jax
import numpy as np
import pytest
from PIL import Image

import models
import vkq_jax
from tests.support.hf_parity import assert_parity, randomize, save, since
from tests.support.qwen_vl import batch, config_json, write_processor
from tests.support.real_processor import real_processor

pytestmark = pytest.mark.parity

NAMES = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
}
# A prompt without a picture; several of unlike sizes; clips, whose last frame lies behind the text
# that follows; pictures and clips in one prompt.
ROWS = [
    [3, ("image", 4, 6), 2, ("image", 10, 2), 4],
    [5],
    [2, ("video", 3, 4, 4), 3, ("image", 2, 6), 2],
    [1, ("video", 12, 2, 2), 2],
]


def theirs(model_type: str, draw: int = 0, **changes):
    """`draw` is the seed of linear attention's decays, which keep their random start."""
    import torch
    import transformers

    torch.manual_seed(draw)
    content = config_json(model_type, **changes)
    if model_type.startswith("qwen3_5"):
        # The norm behind linear attention widens outputs near 0, and their rounding, up to
        # epsilon^-0.5 times: at 1e-6 a token's float32 logits can be 4e-4 off in either library.
        content["text_config"] |= {"rms_norm_eps": 1e-3}
    name = NAMES[model_type]
    config = getattr(transformers, f"{name}Config")(**content)
    return randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def inputs(model_type: str, rows=ROWS):
    arrays = batch(rows, np.random.default_rng(1), frames_apart=model_type.startswith("qwen3"))
    if model_type == "qwen2_5_vl" and "video_grid_thw" in arrays:
        seconds = np.random.default_rng(2).uniform(0.3, 2, len(arrays["video_grid_thw"]))
        arrays["second_per_grid_ts"] = seconds.astype(np.float32)
    return arrays


_SECONDS = since("5.24", "time steps of Qwen2.5-VL's clips are cut to whole seconds")


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(n, marks=_SECONDS) if n == "qwen2_5_vl" else n for n in NAMES],
)
def test_pictures_and_clips_in_a_padded_batch(model_type, tmp_path):
    hf = theirs(model_type)
    assert_parity(hf, save(hf, tmp_path), inputs(model_type))


@pytest.mark.parametrize("draw", [2, 3, 5])
def test_other_decays_of_linear_attention(draw, tmp_path):
    hf = theirs("qwen3_5", draw)
    assert_parity(hf, save(hf, tmp_path), inputs("qwen3_5"), new_tokens=2)


def test_layers_without_experts_between_those_with(tmp_path):
    """Every second layer has experts, unless it is named."""
    text = config_json("qwen3_vl_moe")["text_config"]
    text |= {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    hf = theirs("qwen3_vl_moe", text_config=text)
    ours = save(hf, tmp_path)
    assert ours.config.text.stacks == {"layers": (1, 5), "dense_layers": (0, 2, 3, 4)}
    assert_parity(hf, ours, inputs("qwen3_vl_moe", ROWS[:2]))
    answer = models.generate(
        ours,
        models.prepare(ours, **inputs("qwen3_vl_moe", ROWS[:2])),
        quant=vkq_jax.per_layer("vkq-1bit", {0: "none"}),
        max_new_tokens=2,
        stop_tokens=(),
    )
    assert answer.lengths.tolist() == [2, 2]


@pytest.mark.parametrize("model_type", NAMES)
def test_both_layouts_of_names_load_the_same(model_type, tmp_path):
    hf = theirs(model_type)
    first, second = (
        save(hf, tmp_path / str(original), save_original_format=original)
        for original in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    models.loading.save_weights(first, tmp_path / "True")
    again = models.load(tmp_path / "True", dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    type(hf).from_pretrained(tmp_path / "True")


def test_experts_one_by_one_load_the_same(tmp_path):
    """As Qwen3-MoE's files hold them."""
    from safetensors.numpy import load_file, save_file

    hf = theirs("qwen3_vl_moe")
    fused = save(hf, tmp_path, save_original_format=False)
    file = tmp_path / "model.safetensors"
    apart = {}
    for name, tensor in load_file(file).items():
        start, found, leaf = name.partition("mlp.experts.")
        if not found:
            apart[name] = tensor
            continue
        parts = {"down_proj": tensor}
        if leaf == "gate_up_proj":
            parts = dict(zip(("gate_proj", "up_proj"), np.split(tensor, 2, axis=1), strict=True))
        for part, experts in parts.items():
            for number, matrix in enumerate(experts):
                apart[f"{start}{found}{number}.{part}.weight"] = np.ascontiguousarray(matrix)
    save_file(apart, file)
    again = models.load(tmp_path, dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, fused.params, again.params)


def test_ids_and_pixels_are_those_of_the_real_processor(tmp_path):
    """Pictures alone: the real processor's class wants torchvision for its video processor."""
    from transformers import Qwen2_5_VLProcessor

    hf = theirs("qwen2_5_vl")
    ours = save(hf, tmp_path)
    write_processor(tmp_path)
    processor = real_processor(tmp_path, Qwen2_5_VLProcessor)
    rng = np.random.default_rng(5)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((30, 21), (9, 70))
    ]
    prompts = [models.chat_prompt(ours, "what is this ?", num_images=2), "what is this ?"]
    output = processor(
        text=prompts, images=pictures, padding=True, padding_side="left", return_tensors="np"
    )
    expected = models.prepare(ours, **output)
    got = models.prepare(ours, images=[pictures, None], prompts=prompts)
    jax.tree.map(np.testing.assert_array_equal, got.vision_layout, expected.vision_layout)
    for name in ("input_ids", "mask", "positions", "pixel_values"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
