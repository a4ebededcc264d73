"""Against transformers' PyTorch LLaVA: checkpoints that transformers made and saved itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.layers.attention import causal_mask, dense_attention
from models.prompts.arrays import inputs_from_arrays

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

IMAGE = 49
IMAGE_SIZE, PATCH_SIZE = 28, 7

ROPE = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}

ARCHITECTURES = {
    "as LLaVA-1.5": {},
    "grouped heads, tied, biases, last layer, class token": {
        "text": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
    },
    "one key head, own head_dim, several layers, other activations": {
        "text": {"num_key_value_heads": 1, "head_dim": 12, "hidden_act": "gelu_pytorch_tanh"},
        "vision": {"hidden_act": "gelu", "image_size": 30},
        "vision_feature_layer": [-1, 0, 2, -2],
        "projector_hidden_act": "silu",
        "multimodal_projector_bias": False,
    },
    **{f"{kind} rope": {"text": {"rope_parameters": p}} for kind, p in ROPE.items()},
}


WINDOWS = {
    "mistral": (transformers.MistralConfig, {"sliding_window": 7}),
    "ministral, mixed layers": (
        transformers.MinistralConfig,
        {
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mistral without a window": (transformers.MistralConfig, {"sliding_window": None}),
}


def make(
    folder,
    *,
    vision=None,
    text=None,
    tower=transformers.LlamaConfig,
    dtype=torch.float32,
    **changes,
):
    """A random model in float32 whose weights are saved, rounded to `dtype`, to a folder."""
    vision_config = transformers.CLIPVisionConfig(
        **{
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        }
        | (vision or {})
    )
    text_settings = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        # Short, so that the prompts reach the lengths where frequencies are stretched.
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "default"},
        "rms_norm_eps": 1e-5,
    } | (text or {})
    text_settings["rope_parameters"] = {"rope_theta": 100.0} | text_settings["rope_parameters"]
    config = transformers.LlavaConfig(
        vision_config=vision_config,
        text_config=tower(**text_settings),
        image_token_index=IMAGE,
        **changes,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 1.0 if "embed_tokens" in name else p[0].numel() ** -0.5)
            else:
                p.normal_(1.0 if "norm" in name and "bias" not in name else 0.0, 0.2)
    model.to(dtype).save_pretrained(folder)
    return model


def prompts(config, seed=0):
    """Two images, one and none in prompts of three lengths, padded in front."""
    rng = np.random.default_rng(seed)
    per_image = config.vision.num_features
    rows = [
        [*rng.integers(3, 48, before), *[IMAGE] * per_image, *rng.integers(3, 48, 3)]
        + [IMAGE] * per_image * more
        + list(rng.integers(3, 48, 2))
        for before, more in ((2, 1), (4, 0))
    ]
    rows.append(list(rng.integers(3, 48, 20)))
    length = max(map(len, rows))
    ids = np.array([[0] * (length - len(row)) + list(row) for row in rows])
    mask = np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    size = config.vision.image_size
    pixels = rng.normal(size=(3, 3, size, size)).astype(np.float32)
    return inputs_from_arrays(config, ids, mask, pixels)


def logits_of(model, inputs):
    """transformers' logits, float32, with positions as its `generate` counts them."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(np.asarray(inputs.input_ids), dtype=torch.long),
            attention_mask=torch.tensor(np.asarray(inputs.mask), dtype=torch.long),
            position_ids=torch.tensor(np.asarray(inputs.positions), dtype=torch.long),
            pixel_values=torch.tensor(np.asarray(inputs.pixel_values)).to(dtype),
        )
    return output.logits.float().numpy()


def difference(got, expected, mask):
    return np.abs(np.asarray(got) - expected)[np.asarray(mask, bool)].max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_in_float32(tmp_path, architecture):
    expected_model = make(tmp_path, **ARCHITECTURES[architecture])
    model = models.load(tmp_path, dtype=jnp.float32)
    inputs = prompts(model.config)
    expected = logits_of(expected_model, inputs)
    assert np.abs(expected).max() > 1  # nothing is close because all is small
    assert difference(models.forward(model, inputs), expected, inputs.mask) < 1e-4


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_windows_smaller_than_the_prompt(tmp_path, name):
    """Logits of a whole prompt, and greedy decoding from a cache, for rows of unlike lengths."""
    tower, text = WINDOWS[name]
    text = text | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
    expected_model = make(tmp_path, tower=tower, text=text)
    model = models.load(tmp_path, dtype=jnp.float32)
    inputs = prompts(model.config)
    expected = logits_of(expected_model, inputs)
    assert difference(models.forward(model, inputs), expected, inputs.mask) < 1e-4
    if text["sliding_window"]:
        everything = dataclasses.replace(model.config.text, sliding_window=None)
        config = dataclasses.replace(model.config, text=everything)
        unlike = models.forward(dataclasses.replace(model, config=config), inputs)
        assert difference(unlike, expected, inputs.mask) > 0.1

    with torch.no_grad():
        tokens = expected_model.generate(
            input_ids=torch.tensor(np.asarray(inputs.input_ids), dtype=torch.long),
            attention_mask=torch.tensor(np.asarray(inputs.mask), dtype=torch.long),
            pixel_values=torch.tensor(np.asarray(inputs.pixel_values)),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    options = {"quant": "none", "max_new_tokens": 12, "stop_tokens": ()}
    for quantize_at in ("prompt", "image"):
        got = models.generate(model, inputs, quantize_at=quantize_at, **options)
        np.testing.assert_array_equal(got.tokens, tokens[:, inputs.input_ids.shape[1] :].numpy())


@pytest.mark.parametrize(
    "architecture", ["as LLaVA-1.5", "grouped heads, tied, biases, last layer, class token"]
)
def test_logits_in_bfloat16(tmp_path, architecture):
    """No farther from exact logits of the same rounded weights than transformers is."""
    expected_model = make(tmp_path, **ARCHITECTURES[architecture], dtype=torch.bfloat16)
    model = models.load(tmp_path)
    inputs = prompts(model.config)
    theirs = logits_of(expected_model, inputs)
    exact = logits_of(expected_model.float(), inputs)
    got = models.forward(model, inputs)
    rounding = np.abs(theirs - exact)[np.asarray(inputs.mask)]
    error = np.abs(np.asarray(got) - exact)[np.asarray(inputs.mask)]
    assert error.mean() < 1.2 * rounding.mean()
    assert error.max() < 1.5 * rounding.max()


def test_right_padding_and_text_alone(tmp_path):
    expected_model = make(tmp_path)
    model = models.load(tmp_path, dtype=jnp.float32)
    ids = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = inputs_from_arrays(model.config, ids, mask)
    with torch.no_grad():
        expected = expected_model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)
        ).logits.numpy()
    assert difference(models.forward(model, inputs), expected, mask) < 1e-4


def test_each_module(tmp_path):
    expected_model = make(tmp_path, **ARCHITECTURES["as LLaVA-1.5"]).model
    module = models.load(tmp_path, dtype=jnp.float32).module()
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    with torch.no_grad():
        vision = expected_model.vision_tower(torch.tensor(pixels), output_hidden_states=True)
        features = vision.hidden_states[-2][:, 1:]
        projected = expected_model.multi_modal_projector(features)
        hidden = expected_model.language_model(inputs_embeds=projected).last_hidden_state
    got_features = jax.jit(module.vision)(pixels)
    np.testing.assert_allclose(got_features, features.numpy(), atol=1e-5)
    got_projected = jax.jit(module.projector)(jnp.asarray(features.numpy()))
    np.testing.assert_allclose(got_projected, projected.numpy(), atol=1e-5)

    def attend(layer, query, key, value, carry):
        length = query.shape[1]
        mask = causal_mask(jnp.ones((1, length), bool))
        return (
            dense_attention(query, key, value, mask, logits_scale=module.text.config.logits_scale),
            carry,
            None,
        )

    positions = jnp.broadcast_to(jnp.arange(projected.shape[1]), projected.shape[:2])
    got_hidden, _, _ = jax.jit(lambda x: module.text(x, positions, attend))(projected.numpy())
    np.testing.assert_allclose(got_hidden, hidden.numpy(), atol=1e-4)


def test_gradients(tmp_path):
    """Gradients of the mean squared logits by the embedding, through all three towers."""
    expected_model = make(tmp_path)
    model = models.load(tmp_path, dtype=jnp.float32)
    inputs = prompts(model.config)
    ids = np.asarray(inputs.input_ids)
    inputs = inputs_from_arrays(model.config, ids, None, inputs.pixel_values)
    output = expected_model(
        input_ids=torch.tensor(ids, dtype=torch.long),
        pixel_values=torch.tensor(np.asarray(inputs.pixel_values)),
    )
    (output.logits**2).mean().backward()
    got = jax.grad(lambda model: (models.forward(model, inputs) ** 2).mean())(model).params
    vision = expected_model.model.vision_tower
    pairs = [
        (
            got["text"]["embed_tokens"]["weight"],
            expected_model.model.language_model.embed_tokens.weight.grad,
        ),
        (got["vision"]["embeddings"]["class_embedding"], vision.embeddings.class_embedding.grad),
        (
            got["projector"]["linear_1"]["bias"],
            expected_model.model.multi_modal_projector.linear_1.bias.grad,
        ),
    ]
    for ours, theirs in pairs:
        assert theirs.abs().max() > 1e-3
        np.testing.assert_allclose(ours[...], theirs.numpy(), atol=1e-5, rtol=1e-3)
