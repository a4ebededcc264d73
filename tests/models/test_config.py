import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlavaConfig as HfLlavaConfig

from models.layers import Activation
from models.llava.config import LlavaConfig
from models.rope import RopeKind
from tests.models.hf_files import config_json

MISTRAL = {"model_type": "mistral", "head_dim": 4}
MINISTRAL = MISTRAL | {"model_type": "ministral"}


def read(config):
    return LlavaConfig.from_hf(HfLlavaConfig.from_dict(config))


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
    assert (got.vision.num_layers, got.vision.depth) == (23, 24)
    assert got.vision.activation is Activation.QUICK_GELU
    assert (got.text.num_layers, got.text.num_heads, got.text.num_kv_heads) == (32, 32, 32)
    assert (got.text.head_dim, got.text.width, got.text.mlp_width) == (128, 4096, 11008)
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
        ({"text": {"model_type": "qwen2"}}, "text_config.model_type='qwen2'"),
        (
            {
                "text": {
                    "model_type": "ministral",
                    "layer_types": ["full_attention", "chunked_attention"],
                }
            },
            "text_config.layer_types has chunked_attention",
        ),
        ({"vision": {"model_type": "siglip_vision_model"}}, "vision_config.model_type"),
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
        (MISTRAL | {"sliding_window": 0}, r"sliding_window must lie in \[1, 2\*\*31\), got 0"),
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


@pytest.mark.parametrize("layer", [-5, 4, [1, 7], []])
def test_a_feature_layer_outside_the_tower_is_an_error(layer):
    with pytest.raises(ValueError, match="vision_feature_layer"):
        read(config_json(vision_feature_layer=layer))


@given(st.lists(st.integers(-4, 3), min_size=1, max_size=4).filter(lambda x: set(x) - {0, -4}))
def test_feature_layers_index_the_hidden_states(layers):
    vision = read(config_json(vision_feature_layer=layers)).vision
    states = list(range(4))  # after 0, 1, 2, 3 layers
    assert vision.feature_layers == tuple(states[i] for i in layers)
    assert vision.feature_width == vision.width * len(layers)


def test_full_strategy_keeps_the_class_token():
    assert read(config_json(vision_feature_select_strategy="full")).vision.num_features == 5
