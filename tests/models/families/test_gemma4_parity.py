"""Against transformers' PyTorch Gemma 4: tiny random checkpoints that transformers saved."""

import numpy as np
import pytest

import models
from tests.support.hf_parity import assert_parity, randomize, save, since
from tests.support.rows import padded_rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

IMAGE, VIDEO, PATCH, POOL, MOST = 40, 43, 4, 2, 24
_OF_PICTURES = ("pixel_values", "image_position_ids")
SLIDING, FULL = "sliding_attention", "full_attention"

MODELS = {
    "larger: values are keys, other heads, pictures see themselves": {
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "use_bidirectional_attention": "vision",
        "final_logit_softcapping": 8.0,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL],
        "vision": {"standardize": True, "num_key_value_heads": 1},
    },
    "small: inputs of layers, shared keys, wide MLPs, clipped linears": {
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 48,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL],
        "vision": {"use_clipped_linears": True},
    },
    "experts beside the MLP, equal heads, biases": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 8,
        "global_head_dim": 8,
        "attention_bias": True,
        # Without inputs of layers, transformers cannot generate where keys are shared.
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 48,
        "num_kv_shared_layers": 1,
        "layer_types": [FULL, SLIDING, FULL],
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e3},
            SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
        "vision": {"pooling_kernel_size": 2, "rope_parameters": {"rope_theta": 30.0}},
    },
    "no layer with a window": {
        "layer_types": [FULL] * 3,
        "num_kv_shared_layers": 1,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 48,
    },
}


def make(*, vision=None, **text):
    layers = len(text["layer_types"])
    config = transformers.Gemma4Config(
        text_config={
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": 6,
            "hidden_size_per_layer_input": 0,
        }
        | text,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "patch_size": PATCH,
            "pooling_kernel_size": POOL,
            "position_embedding_size": 16,
        }
        | (vision or {}),
        image_token_id=IMAGE,
        boi_token_id=41,
        eoi_token_id=42,
        video_token_id=43,
        audio_token_id=44,
        eoa_token_index=45,
        boa_token_id=46,
    )
    model = randomize(transformers.Gemma4ForConditionalGeneration(config))
    torch.manual_seed(1)
    # Else these models would be too ill-conditioned to compare with: transformers' float32 logits
    # then differ from its own float64 ones by 1.5e-4 to 3e-4, with these scales by 1.1e-5.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("k_norm.weight"):  # trained ones hold the scale that scores lack
                weight.mul_(weight.numel() ** -0.5)
            if name.endswith("embed_tokens.weight"):  # the head, too: else logits reach 35
                weight.mul_(0.5)
            if name.endswith("per_layer_input_gate.weight"):
                # PyTorch's GELU loses digits in its tail, which the norm behind it would show.
                weight.mul_(0.2)
    for name, buffer in model.named_buffers():
        part = name.rsplit(".", 1)[-1]
        if part == "layer_scalar" or part.startswith("std_"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
        elif part in ("input_max", "output_max") and "layers.0" in name:
            buffer.fill_(1.0)  # the others stay infinite
    return model


def arrays(*rows, seed=0, token=IMAGE):
    """A batch, padded on the left, as the processor gives it: rows and columns of pictures.

    With `token=VIDEO` those of each row are the frames of a clip.
    """
    rng = np.random.default_rng(seed)
    tokens, pixels, places = [], [], []
    for row, pictures in enumerate(rows):
        parts = [rng.integers(0, 40, 3 + row)]
        for height, width in pictures:
            count = height * width // POOL**2
            parts += [[41, *[token] * count, 42], rng.integers(0, 40, 2)]
            patches = np.zeros((MOST, 3 * PATCH**2), np.float32)
            patches[: height * width] = rng.uniform(size=(height * width, 3 * PATCH**2))
            own = np.full((MOST, 2), -1)
            own[: height * width] = np.indices((height, width))[::-1].reshape(2, -1).T
            pixels.append(patches)
            places.append(own)
        tokens.append(np.concatenate(parts))
    found = padded_rows(*(row.tolist() for row in tokens))
    visual, video = found["input_ids"] == token, token == VIDEO
    found["mm_token_type_ids"] = visual.astype(np.int64) * (1 + video)
    names = ("pixel_values_videos", "video_position_ids") if video else _OF_PICTURES
    if pixels:
        found |= dict(zip(names, map(np.stack, (pixels, places)), strict=True))
    if video:
        found["num_frames_per_video"] = np.array([len(row) for row in rows if row])
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens(tmp_path, name):
    theirs = make(**MODELS[name])
    batch = arrays([(4, 6), (2, 4)], [], [(6, 2)])
    assert_parity(theirs, save(theirs, tmp_path), batch, new_tokens=6)


@since("5.24", "frames of all clips lie on one axis")
def test_clips(tmp_path):
    theirs = make(**MODELS["larger: values are keys, other heads, pictures see themselves"])
    batch = arrays([(4, 6)] * 3, [], [(6, 2), (6, 2)], token=VIDEO)
    assert_parity(theirs, save(theirs, tmp_path), batch, new_tokens=4)


@pytest.mark.parametrize("name", list(MODELS)[:2])
def test_an_answer_may_hold_tokens_of_pictures(tmp_path, name):
    """They count as padding."""
    theirs = make(**MODELS[name])
    with torch.no_grad():
        theirs.get_input_embeddings().weight[IMAGE] *= 30  # the head, too
    ours, batch = save(theirs, tmp_path), arrays([(4, 6)], [])
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 6}
    expected = theirs.generate(**tensors, **options)[:, batch["input_ids"].shape[1] :].numpy()
    assert (expected[:, :-1] == IMAGE).any()
    options = {"quant": "none", "stop_tokens": (), "max_new_tokens": 6}
    answer = models.generate(ours, models.prepare(ours, **batch), **options)
    np.testing.assert_array_equal(answer.tokens, expected)


def test_no_pictures_at_all(tmp_path):
    theirs = make(**MODELS["small: inputs of layers, shared keys, wide MLPs, clipped linears"])
    ours = save(theirs, tmp_path, save_original_format=False)
    assert_parity(theirs, ours, arrays([], []), new_tokens=4)
