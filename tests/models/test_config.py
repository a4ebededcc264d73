import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.families.llava.config import LlavaConfig
from models.layers.activations import Activation
from models.layers.rope_config import RopeKind
from tests.models.hf_files import config_json

MISTRAL = {"model_type": "mistral", "head_dim": 4}
MINISTRAL = MISTRAL | {"model_type": "ministral"}
QWEN = {"head_dim": 4, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}


def read(config):
    return LlavaConfig.from_hf(config)


def test_published_llava_7b_file():
    """The file of llava-hf/llava-1.5-7b-hf leaves most settings to transformers' defaults."""
    got = read(
        {
            "model_type": "llava",
            "image_token_index": 32000,
            "projector_hidden_act": "gelu",
            "text_config": {
                "max_position_embeddings": 4096,
                "model_type": "llama",
                "rms_norm_eps": 1e-05,
                "vocab_size": 32064,
            },
            "tie_word_embeddings": False,
            "vision_config": {
                "hidden_size": 1024,
                "image_size": 336,
                "intermediate_size": 4096,
                "model_type": "clip_vision_model",
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "projection_dim": 768,
                "vocab_size": 32000,
            },
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        }
    )
    assert got.vision.num_features == 576
    assert (got.vision.num_layers, got.vision.encoder.num_hidden_layers) == (23, 24)
    assert got.vision.encoder.hidden_act is Activation.QUICK_GELU
    assert (
        got.text.num_hidden_layers,
        got.text.num_attention_heads,
        got.text.num_key_value_heads,
    ) == (32, 32, 32)
    assert (got.text.head_dim, got.text.hidden_size, got.text.intermediate_size) == (
        128,
        4096,
        11008,
    )
    assert (got.text.rope.theta, got.text.rope.max_length) == (10000.0, 4096)
    assert got.eos_token_ids == (2,)
    assert hash(got) == hash(got)


def test_rope_settings_of_both_generations_read_the_same():
    scaling = {"factor": 4.0}
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear"} | scaling}
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0} | scaling}
    base = config_json()
    del base["text_config"]["rope_theta"]
    first, second = (read(base | {"text_config": base["text_config"] | s}) for s in (old, new))
    assert first == second
    assert first.text.rope.kind is RopeKind.LINEAR
    assert (first.text.rope.theta, first.text.rope.factor) == (500.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"text": {"sliding_window": 128}}, "text_config.sliding_window=128"),
        ({"text": {"layer_types": ["sliding_attention"] * 2}}, "text_config.layer_types="),
        ({"text": {"hidden_act": "mish"}}, "text_config.hidden_act='mish'"),
        ({"vision": {"hidden_act": "mish"}}, "vision_config.hidden_act='mish'"),
        ({"projector_hidden_act": "mish"}, "projector_hidden_act='mish'"),
        ({"vision": {"num_channels": 4}}, "vision_config.num_channels=4"),
        ({"vision": {"image_size": [28, 42]}}, "vision_config.image_size"),
        ({"vision_feature_layer": 0}, "vision_feature_layer=0"),
        ({"text": {"rope_parameters": {"rope_type": "proportional"}}}, "rope_type='proportional'"),
        (
            {
                "text": {
                    "rope_parameters": {
                        "rope_type": "linear",
                        "factor": 2.0,
                        "partial_rotary_factor": 0.5,
                    }
                }
            },
            "partial_rotary_factor=0.5",
        ),
        ({"text": {"model_type": "gpt2"}}, "text_config.model_type='gpt2'"),
        (
            {
                "text": {
                    "model_type": "ministral",
                    "layer_types": ["full_attention", "chunked_attention"],
                }
            },
            "text_config.layer_types has chunked_attention",
        ),
        ({"vision": {"model_type": "dinov2"}}, "vision_config.model_type"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, setting):
    with pytest.raises(NotImplementedError, match=setting.replace("[", r"\[")):
        read(config_json(**changes))


@pytest.mark.parametrize(
    ("text", "window", "full_layers"),
    [
        (MISTRAL, 4096, ()),
        (MISTRAL | {"sliding_window": 7}, 7, ()),
        (MISTRAL | {"sliding_window": None}, None, ()),
        (MINISTRAL | {"sliding_window": 7}, 7, ()),
        (MINISTRAL | {"layer_types": ["full_attention", "sliding_attention"]}, 4096, (0,)),
        (MINISTRAL | {"layer_types": ["full_attention"] * 2}, None, ()),
        ({"sliding_window": None}, None, ()),
        (QWEN | {"model_type": "qwen3"}, 7, (0,)),
        (QWEN | {"model_type": "qwen3_moe"}, 7, ()),
        (QWEN | {"model_type": "qwen3_moe", "use_sliding_window": False}, None, ()),
    ],
)
def test_sliding_windows(text, window, full_layers):
    """As transformers' towers have them: in all layers, or in those that are called so."""
    got = read(config_json(text=text)).text
    assert (got.sliding_window, got.full_layers) == (window, full_layers)
    assert (got.head_dim, got.rope.head_dim) == (4, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MISTRAL | {"sliding_window": 0},
            "sliding_window: expected an integer from 1 .* got 0",
        ),
        (MISTRAL | {"sliding_window": 2**31}, "got 2147483648"),
        (
            MINISTRAL | {"sliding_window": None, "layer_types": ["sliding_attention"] * 2},
            "has sliding_attention, sliding_window is None",
        ),
    ],
)
def test_windows_that_are_none_are_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        read(config_json(text=text))


NAN, INFINITY = float("nan"), float("inf")
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"rms_norm_eps": NAN}}, "text_config.rms_norm_eps: expected a finite number"),
        ({"text": {"rms_norm_eps": -1e-5}}, "text_config.rms_norm_eps: expected a number from"),
        ({"text": {"rms_norm_eps": 10**400}}, "text_config.rms_norm_eps: expected a finite"),
        ({"text": {"rms_norm_eps": "1e-5"}}, "text_config.rms_norm_eps: expected a number"),
        ({"vision": {"layer_norm_eps": INFINITY}}, "vision_config.layer_norm_eps: expected a fin"),
        ({"text": {"rope_theta": 0}}, "text_config.rope_theta: expected a number from"),
        ({"text": {"rope_theta": -1e4}}, "text_config.rope_theta: expected a number from"),
        ({"text": {"rope_theta": True}}, "text_config.rope_theta: expected a number"),
        ({"text": {"hidden_size": None}}, "text_config.hidden_size: expected an integer from 1"),
        ({"text": {"hidden_size": 16.0}}, "text_config.hidden_size: expected an integer from 1"),
        ({"text": {"hidden_size": 2**63}}, "text_config.hidden_size: expected an integer from 1"),
        ({"text": {"num_hidden_layers": 2**31}}, "text_config.num_hidden_layers: .* to 4096, got"),
        ({"text": {"num_hidden_layers": 0}}, "text_config.num_hidden_layers: expected an integer"),
        ({"text": {"num_attention_heads": 6}}, "hidden_size: expected a multiple of .*=6, got 16"),
        ({"text": {"num_key_value_heads": 3}}, "num_key_value_heads: expected a divisor of .*=4"),
        ({"text": {"head_dim": 5}}, "head_dim: expected an even number of at least 2"),
        ({"vision": {"num_attention_heads": 3}}, "vision_config.hidden_size: expected a multiple"),
        (
            {"vision": {"patch_size": 29}},
            "vision_config.patch_size: expected at most .*=28",
        ),
        ({"vision": {"image_size": 0}}, "vision_config.image_size: expected an integer from 1"),
        ({"text_config": 3}, "text_config: expected an object or null, got 3"),
        ({"image_token_index": -1}, "image_token_index: expected an integer from 0"),
        ({"eos_token_id": ["2"]}, r"eos_token_id\[0\]: expected an integer from 0 .* got '2'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, got 'fal"),
        (
            {"text": MINISTRAL | {"layer_types": ["full_attention"]}},
            "layer_types: expected one for each of the 2 layers, got 1",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        read(config_json(**changes))


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear", "factor": 0}, "rope_parameters.factor: expected a number from"),
        ({"rope_type": "yarn", "factor": NAN}, "rope_parameters.factor: expected a finite"),
        ({"rope_type": "dynamic"}, "rope_parameters.factor is missing: dynamic needs it"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor: expected less than .*=4.0, got 4.0"),
        (LLAMA3 | {"low_freq_factor": 0.0}, "rope_parameters.low_freq_factor: expected a number"),
        (LONGROPE | {"short_factor": [1.0]}, "short_factor: expected 2 numbers.* got 1"),
        (LONGROPE | {"long_factor": [1.0, 0.0]}, r"long_factor\[1\]: expected a number from"),
        (LONGROPE | {"long_factor": 2.0}, "long_factor: expected a list"),
        ({"rope_type": "default", "rope_theta": 0.0}, "rope_parameters.rope_theta: expected a num"),
        (
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0},
            "beta_fast: expected at least beta_slow=2.0, got 1.0",
        ),
    ],
)
def test_rotary_settings_that_cannot_be_are_refused_by_name(rope, message):
    with pytest.raises(ValueError, match=message):
        read(config_json(text={"rope_parameters": rope}))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "mrope_section": [1, 1]},
        {"full_attention": {"rope_type": "default"}},
    ],
)
def test_rotary_settings_that_are_unknown_are_refused(rope):
    with pytest.raises(NotImplementedError, match=r"rope_parameters has .* is not supported"):
        read(config_json(text={"rope_parameters": rope}))


@pytest.mark.parametrize("layer", [-5, 4, [1, 7], []])
def test_a_feature_layer_outside_the_tower_is_an_error(layer):
    with pytest.raises(ValueError, match="vision_feature_layer"):
        read(config_json(vision_feature_layer=layer))


@given(st.lists(st.integers(-4, 3), min_size=1, max_size=4).filter(lambda x: set(x) - {0, -4}))
def test_feature_layers_index_the_hidden_states(layers):
    vision = read(config_json(vision_feature_layer=layers)).vision
    states = list(range(4))  # after 0, 1, 2, 3 layers
    assert vision.feature_layers == tuple(states[i] for i in layers)
    assert vision.feature_width == vision.encoder.hidden_size * len(layers)


def test_full_strategy_keeps_the_class_token():
    assert read(config_json(vision_feature_select_strategy="full")).vision.num_features == 5


def test_another_name_of_the_image_token():
    assert read(config_json(image_token_id=7)).image_token_id == 7
