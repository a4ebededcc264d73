"""Random `text_config`s: legal, tiny and odd, in the names of transformers 5."""

import random
from typing import Any

__all__ = [
    "ACTIVATIONS",
    "FULL",
    "KINDS",
    "SLIDING",
    "TYPES",
    "draw_rope",
    "draw_ropes",
    "draw_text",
    "frequencies_grow",
    "head_counts",
]

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "gelu_fast")
SLIDING, FULL = "sliding_attention", "full_attention"
_WITH_HEAD_DIM = (
    *("llama", "mistral", "ministral", "ministral3", "qwen3", "qwen3_moe", "granite"),
    *("gemma", "gemma2", "gemma3_text", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text"),
    *("qwen3_5_moe_text", "glm4v_moe_text", "glm_ocr_text", "paddleocr_vl_text"),
)
# transformers' classes of these take none, or a number by default.
_HEAD_DIM_STATED = ("ministral", "ministral3", "qwen3", "qwen3_vl_text", "paddleocr_vl_text")
_PARTIAL = (
    *("phi3", "glm4v_text", "glm4v_moe_text", "glm_ocr_text"),
    *("qwen3_5_text", "qwen3_5_moe_text"),
)
_BIASES = (
    *("qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "glm4v_moe_text"),
    *("llama", "granite", "qwen3", "qwen3_moe", "cohere2", "gemma", "gemma2", "gemma3_text"),
)
TYPES = ("default", "default", "linear", "dynamic", "yarn", "llama3", "longrope")

KINDS = (
    *("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "qwen3_moe", "phi3"),
    *("gemma", "gemma2", "gemma3_text", "granite", "cohere2"),
)
"""Decoders that any family without M-RoPE takes."""


def head_counts(rng: random.Random) -> tuple[int, int]:
    """Heads of queries, and a divisor of them: heads of keys."""
    heads = rng.choice((1, 2, 3, 4, 6))
    return heads, rng.choice([n for n in range(1, heads + 1) if heads % n == 0])


def draw_rope(rng: random.Random, channels: int, types: tuple[str, ...] = TYPES) -> dict[str, Any]:
    """`rope_parameters` for heads of which so many channels turn."""
    found: dict[str, Any] = {
        "rope_type": rng.choice(types),
        "rope_theta": rng.choice((30.0, 1e3, 1e4, 5e5)),
    }
    shorter = {"original_max_position_embeddings": rng.choice((8, 16, 40))}
    match found["rope_type"]:
        case "linear":
            found["factor"] = rng.choice((1.0, 2.5, 8.0))
        case "dynamic":
            found["factor"] = rng.choice((1.0, 2.0, 4.0))
        case "yarn":
            found |= shorter | {"factor": rng.choice((1.0, 2.0, 8.0))}
            for name, values in {
                "beta_fast": (32.0, 4.0),
                "beta_slow": (1.0, 2.0),
                "attention_factor": (0.8, 1.3),
                "truncate": (True, False),
            }.items():
                if rng.random() < 0.3:
                    found[name] = rng.choice(values)
            if rng.random() < 0.3:
                found |= {
                    "mscale": rng.choice((0.7, 1.0)),
                    "mscale_all_dim": rng.choice((0.5, 1.0)),
                }
        case "llama3":
            found |= shorter | {
                "factor": rng.choice((2.0, 8.0)),
                "low_freq_factor": 1.0,
                "high_freq_factor": rng.choice((2.0, 4.0)),
            }
        case "longrope":
            pairs = channels // 2
            found |= shorter | {
                "short_factor": [round(rng.uniform(0.8, 1.5), 3) for _ in range(pairs)],
                "long_factor": [round(rng.uniform(1, 6), 3) for _ in range(pairs)],
            }
            if rng.random() < 0.5:
                found["factor"] = rng.choice((1.0, 3.0))
            if rng.random() < 0.3:
                found["attention_factor"] = rng.choice((0.8, 1.3))
    return found


def frequencies_grow(text: dict[str, Any]) -> bool:
    """Whether RoPE's frequencies depend on the length of a call, so that two calls differ."""
    return any(kind in str(text.get("rope_parameters")) for kind in ("dynamic", "longrope"))


def draw_ropes(
    rng: random.Random, channels: dict[str, int], types: tuple[str, ...] = TYPES
) -> dict[str, Any]:
    """`rope_parameters` of decoders whose kinds of layers turn differently."""
    found = {kind: draw_rope(rng, count, types) for kind, count in channels.items()}
    for each in found.values():
        each.pop("truncate", None)  # which transformers does not find here
    return found


def _windows(rng: random.Random, kind: str, layers: int) -> dict[str, Any]:
    """Sliding windows, shorter than prompts, and which layers have them."""
    # transformers' cache keeps too much of a window of 1: its answers without it are others.
    window = {"sliding_window": rng.choice((2, 3, 5, 9, 40))}
    listed = {"layer_types": [rng.choice((SLIDING, FULL)) for _ in range(layers)]}
    match kind:
        case "mistral" | "ministral3" | "phi3":
            return rng.choice(({"sliding_window": None}, window))
        case "ministral":
            return window | rng.choice(({}, listed))
        case "qwen2" | "qwen3" | "qwen2_vl_text" | "qwen2_5_vl_text":
            some = {"use_sliding_window": True, "max_window_layers": rng.randint(0, layers)}
            return rng.choice(({}, window | some, window | some | listed))
        case "qwen3_moe":
            some = {"use_sliding_window": True, "max_window_layers": rng.randint(0, layers)}
            return rng.choice(({}, window | some))
        case "qwen3_5_text" | "qwen3_5_moe_text":
            kinds = [
                "linear_attention",
                FULL,
                *rng.choices(("linear_attention", FULL), k=layers - 2),
            ]
            rng.shuffle(kinds)
            return {"layer_types": kinds}
        case "gemma2" | "gemma3_text" | "cohere2":
            return window | rng.choice(({}, listed))
    return {}


def _experts(rng: random.Random, kind: str, layers: int) -> dict[str, Any]:
    if kind == "glm4v_moe_text":
        groups = rng.choice((1, 2, 3))
        within = rng.choice((2, 3))
        kept = rng.randint(1, groups)
        return {
            "n_routed_experts": groups * within,
            "n_group": groups,
            "topk_group": kept,
            "num_experts_per_tok": rng.randint(1, kept * within),
            "moe_intermediate_size": rng.choice((5, 9)),
            "n_shared_experts": rng.choice((1, 2)),
            "routed_scaling_factor": rng.choice((1.0, 1.7)),
            "norm_topk_prob": rng.random() < 0.5,
            "first_k_dense_replace": rng.randint(0, layers),
        }
    if "moe" not in kind:
        return {}
    count = rng.randint(2, 6)
    found = {
        "num_experts": count,
        "num_experts_per_tok": rng.randint(1, count),
        "moe_intermediate_size": rng.choice((5, 7, 11)),
    }
    if kind == "qwen3_5_moe_text":
        return found | {"shared_expert_intermediate_size": rng.choice((3, 10))}
    if kind == "qwen3_moe":
        found["norm_topk_prob"] = rng.random() < 0.5
    if rng.random() < 0.5:
        found["decoder_sparse_step"] = rng.choice((1, 2))
        found["mlp_only_layers"] = rng.sample(range(layers), rng.randint(0, layers - 1))
    return found


def _own_fields(rng: random.Random, kind: str) -> dict[str, Any]:
    """Fields that one decoder has alone."""
    match kind:
        case "granite":
            return {
                "embedding_multiplier": rng.choice((1.0, 3.0)),
                "residual_multiplier": rng.choice((1.0, 0.4)),
                "attention_multiplier": rng.choice((1.0, 0.2)),
                "logits_scaling": rng.choice((1.0, 4.0)),
            }
        case "gemma2":
            return {
                "query_pre_attn_scalar": rng.choice((5, 16)),
                "attn_logit_softcapping": rng.choice((None, 1.5, 50.0)),
                # A tighter cap would make equal numbers of the largest logits.
                "final_logit_softcapping": rng.choice((None, 8.0, 30.0)),
            }
        case "qwen3_5_text" | "qwen3_5_moe_text":
            keys = rng.choice((1, 2, 3))
            return {
                "linear_conv_kernel_dim": rng.choice((2, 3, 4)),
                "linear_num_key_heads": keys,
                "linear_num_value_heads": keys * rng.choice((1, 2, 3)),
                "linear_key_head_dim": rng.choice((3, 6)),
                "linear_value_head_dim": rng.choice((4, 5)),
            }
        case "paddleocr_vl_text":
            return {"use_bias": rng.random() < 0.5}
        case "gemma3_text":
            return {"query_pre_attn_scalar": rng.choice((5, 16))}
        case "cohere2":
            return {
                "logit_scale": rng.choice((1.0, 0.3)),
                "layer_norm_eps": rng.choice((1e-5, 1e-3)),
            }
    return {}


def draw_text(rng: random.Random, kind: str, vocabulary: int) -> dict[str, Any]:
    """A `text_config` of a `model_type`."""
    heads, kv_heads = head_counts(rng)
    channels = rng.choice([n for n in (4, 6, 8, 12) if heads * n >= 12])
    layers = rng.choice((2, 3, 4) if kind.startswith("qwen3_5") else (1, 2, 3, 4))
    always = kind.startswith(("gemma", "qwen3_5"))
    own = always or (kind in _WITH_HEAD_DIM and rng.random() < 0.7)
    width = heads * channels
    if own:  # some of transformers' classes want a multiple of the heads nevertheless
        width = heads * rng.choice([n for n in range(2, 33) if 12 <= heads * n <= 32])
    found = {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": rng.choice((9, 17, 26)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": rng.choice((16, 30, 64, 512)),
        "rms_norm_eps": rng.choice((1e-6, 1e-5, 1e-3)),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": rng.choice((2, [2, 5])),
        "tie_word_embeddings": rng.random() < 0.3,
    }
    if kind in _WITH_HEAD_DIM and (own or kind in _HEAD_DIM_STATED):
        found["head_dim"] = channels
    found["hidden_activation" if kind in ("gemma2", "gemma3_text") else "hidden_act"] = rng.choice(
        ACTIVATIONS
    )
    if kind in _BIASES:
        found["attention_bias"] = rng.random() < 0.5
    if kind in ("llama", "granite"):
        found["mlp_bias"] = rng.random() < 0.5
    found |= _windows(rng, kind, layers) | _experts(rng, kind, layers) | _own_fields(rng, kind)
    turning, partial = channels, {}
    if kind in _PARTIAL:
        share = rng.choice((0.5, 1.0)) if channels % 4 == 0 else 1.0
        turning, partial = int(channels * share), {"partial_rotary_factor": share}
    types = TYPES if turning > 2 else tuple(t for t in TYPES if t != "dynamic")
    if kind == "gemma3_text":
        found["rope_parameters"] = draw_ropes(rng, {FULL: channels, SLIDING: channels}, types)
        return found
    if kind == "phi3":
        types = ("default", "longrope")
    rope = draw_rope(rng, turning, types)
    if kind == "ministral3":
        rope |= {"llama_4_scaling_beta": rng.choice((0.1, 0.7))}
        rope.setdefault("original_max_position_embeddings", 8)
    if kind == "phi3":
        found["original_max_position_embeddings"] = rng.choice((8, 16, 40))
        rope.pop("original_max_position_embeddings", None)
    if rng.random() < 0.9 or kind in _PARTIAL or kind == "ministral3":
        found["rope_parameters"] = rope | partial
    return found
