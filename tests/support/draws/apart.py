"""Random models with towers and decoders of their own: Gemma 4 and Mllama."""

import random
from functools import partial
from typing import Any

import numpy as np

from tests.support.draws.any_grids import normal
from tests.support.draws.batches import Tokens, counts_of_rows, prompt_rows, spread
from tests.support.draws.drawn import Drawn
from tests.support.draws.texts import (
    ACTIVATIONS,
    FULL,
    SLIDING,
    TYPES,
    draw_rope,
    draw_ropes,
    head_counts,
)
from tests.support.mllama import with_mask
from tests.support.rows import padded_rows

__all__ = ["DRAWS"]

_RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))


def _gemma4_text(rng: random.Random, vocabulary: int, *, plain: bool) -> dict[str, Any]:
    """The decoder; a `plain` one has no inputs of layers and no experts."""
    heads, kv_heads = head_counts(rng)
    head_dim, full_dim, layers = (
        rng.choice((4, 8)),
        rng.choice((4, 8, 16)),
        rng.choice((2, 3, 4, 5)),
    )
    kinds = [*rng.choices((SLIDING, FULL), k=layers - 1), FULL]
    # transformers' RoPEs whose frequencies depend on a call's length know one width of heads.
    types = TYPES if full_dim == head_dim else ("default", "linear", "yarn", "llama3")
    ropes = draw_ropes(rng, {FULL: full_dim, SLIDING: head_dim}, types)
    if rng.random() < 0.5:
        ropes[FULL] = {
            "rope_type": "proportional",
            "rope_theta": 1e3,
            "partial_rotary_factor": rng.choice((0.25, 0.5, 1.0)),
        }
    found = {
        "vocab_size": vocabulary,
        "hidden_size": rng.choice((16, 20, 24)),
        "intermediate_size": rng.choice((9, 17)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "global_head_dim": full_dim,
        "layer_types": kinds,
        "hidden_activation": rng.choice(ACTIVATIONS),
        "rms_norm_eps": rng.choice((1e-6, 1e-3)),
        "attention_bias": rng.random() < 0.3,
        "sliding_window": rng.choice((2, 3, 6, 40)),
        "final_logit_softcapping": rng.choice((None, 8.0)),
        "use_bidirectional_attention": rng.choice((None, "vision")),
        "tie_word_embeddings": rng.random() < 0.7,
        "max_position_embeddings": rng.choice((30, 512)),
        "pad_token_id": 0,
        "eos_token_id": rng.choice((1, [1, 7])),
        "rope_parameters": ropes,
    }
    if rng.random() < 0.5:
        found["attention_k_eq_v"] = True
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        found["num_global_key_value_heads"] = rng.choice((None, *divisors))
    if not plain:
        found["hidden_size_per_layer_input"] = 0
    # Without inputs of layers, transformers' Gemma 4 cannot generate where keys are shared.
    if rng.random() < 0.5:
        if not plain:
            found |= {"hidden_size_per_layer_input": 3, "vocab_size_per_layer_input": vocabulary}
        shared = [n for n in range(layers) if set(kinds[: layers - n]) == set(kinds)]
        found["num_kv_shared_layers"] = rng.choice(shared)
        found["use_double_wide_mlp"] = rng.random() < 0.5
    if not plain and rng.random() < 0.4:
        count = rng.randint(2, 5)
        found |= {
            "enable_moe_block": True,
            "num_experts": count,
            "top_k_experts": rng.randint(1, count),
            "moe_intermediate_size": 7,
        }
    return found


def _gemma4_tower(rng: random.Random, pool: int, patch: int) -> dict[str, Any]:
    heads = rng.choice((1, 2, 3))
    return {
        "hidden_size": rng.choice((12, 16)),
        "intermediate_size": rng.choice((7, 12)),
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": rng.choice((4, 8, 12)),
        "hidden_activation": rng.choice(ACTIVATIONS),
        "rms_norm_eps": rng.choice((1e-6, 1e-4)),
        "patch_size": patch,
        "pooling_kernel_size": pool,
        "position_embedding_size": 4 * pool + rng.choice((0, 3)),
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice((30.0, 100.0))},
        "use_clipped_linears": rng.random() < 0.3,
        "standardize": rng.random() < 0.5,
    }


def _squares(rng: random.Random, pool: int, patch: int) -> dict[str, Any]:
    width = rng.choice((12, 16))
    return {
        "patch_size": patch,
        "pooling_kernel_size": pool,
        "mm_embed_dim": width,
        "output_proj_dims": width,
        "mm_posemb_size": 4 + rng.choice((0, 3)),
        "rms_norm_eps": rng.choice((1e-6, 1e-4)),
    }


def _gemma4(rng: random.Random, model_type: str) -> Drawn:
    tokens = Tokens.draw(rng, 7)
    pool, patch = rng.choice((2, 3)), rng.choice((2, 3, 4))
    image, begin, end, video, audio, *others = tokens.marks
    unified = model_type == "gemma4_unified"
    content = {
        "model_type": model_type,
        "text_config": _gemma4_text(rng, tokens.vocabulary, plain=unified),
        "vision_config": (_squares if unified else _gemma4_tower)(rng, pool, patch),
        "image_token_id": image,
        "boi_token_id": begin,
        "eoi_token_id": end,
        "video_token_id": video,
        "audio_token_id": audio,
        "boa_token_id": others[0],
        "eoa_token_index": others[1],
        "tie_word_embeddings": rng.random() < 0.7,
    }
    if unified:  # the processor's squares are the model's patches
        pool, patch = 1, pool * patch
    most = 16 * pool**2
    counts = counts_of_rows(rng)
    clips, found = [], {"": ([], []), "_videos": ([], [])}
    visuals = []
    for _ in range(sum(counts)):
        rows, columns = (pool * rng.randint(1, 4) for _ in range(2))
        frames = rng.randint(1, 3) if rng.random() < 0.3 else 0
        clips += [frames] if frames else []
        token = video if frames else image
        shown = [[begin, *[token] * (rows * columns // pool**2), end]] * max(frames, 1)
        visuals.append(
            [t for frame in shown for t in (*frame, *rng.choices(tokens.words, k=bool(frames)))]
        )
        pixels, places = found["_videos" if frames else ""]
        for _ in range(max(frames, 1)):
            patches = np.zeros((most, 3 * patch**2), np.float32)
            patches[: rows * columns] = abs(normal(rng, rows * columns, 3 * patch**2)) % 1
            own = np.full((most, 2), -1)
            own[: rows * columns] = np.indices((rows, columns))[::-1].reshape(2, -1).T
            pixels.append(patches)
            places.append(own)
    rows = prompt_rows(rng, tokens, spread(counts, visuals))
    arrays = {}
    for name, (pixels, places) in found.items():
        if pixels:
            kind = "video" if name else "image"
            arrays |= {
                f"pixel_values{name}": np.stack(pixels),
                f"{kind}_position_ids": np.stack(places),
            }
    if clips:
        arrays["num_frames_per_video"] = np.array(clips)

    def batch(side: str) -> dict[str, np.ndarray]:
        found = padded_rows(*rows, side=side)
        ids = found["input_ids"]
        types = np.where(ids == image, 1, np.where(ids == video, 2, 0))
        return found | arrays | {"mm_token_type_ids": types}

    return Drawn(content, batch)


def _mllama(rng: random.Random) -> Drawn:
    vocabulary = rng.randint(40, 70)
    image = rng.choice((vocabulary, vocabulary + 5, rng.randint(6, vocabulary - 1)))
    words = tuple(sorted(set(range(3, vocabulary)) - {image}))
    tokens = Tokens(vocabulary, (image,), words)
    heads, kv_heads = head_counts(rng)
    channels = rng.choice([n for n in (4, 6, 8, 12) if heads * n >= 12])
    layers = rng.choice((2, 3, 4, 5, 6))
    tower_heads, depth, patch = rng.choice((1, 2, 3)), rng.choice((1, 2, 3)), rng.choice((3, 4))
    kept = rng.choices(range(-depth, depth), k=rng.choice((1, 2, 3)))
    width = tower_heads * rng.choice((4, 5))
    size, most = patch * rng.choice((2, 3)) + rng.choice((0, 1)), 4
    cross = sorted(rng.sample(range(1, layers), rng.randint(1, layers - 1)))
    content = {
        "model_type": "mllama",
        "image_token_index": image,
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": rng.choice((7, 12)),
            "num_hidden_layers": depth,
            "num_global_layers": rng.choice((1, 2)),
            "attention_heads": tower_heads,
            "hidden_act": rng.choice(ACTIVATIONS),
            "image_size": size,
            "patch_size": patch,
            "norm_eps": rng.choice((1e-5, 1e-3)),
            "max_num_tiles": most,
            "vision_output_dim": width * (1 + len(kept)),
            "intermediate_layers_indices": kept,
            "supported_aspect_ratios": [list(each) for each in _RATIOS],
        },
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": heads * channels,
            "intermediate_size": rng.choice((9, 17)),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "hidden_act": rng.choice(ACTIVATIONS),
            "rms_norm_eps": rng.choice((1e-5, 1e-3)),
            "cross_attention_layers": cross,
            "max_position_embeddings": rng.choice((16, 64)),
            "rope_parameters": draw_rope(rng, channels),
            "tie_word_embeddings": rng.random() < 0.3,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
    }
    # Rows of one batch look at each other's padding in transformers: all have as many pictures.
    each = rng.choice((0, 1, 2, 3))
    counts = [each] * (1 if each == 0 else rng.choice((1, 2)))
    if each > 1:
        counts = [each]
    rows = prompt_rows(rng, tokens, spread(counts, [[image]] * sum(counts)))
    arrays: dict[str, np.ndarray] = {}
    if each:
        pixels = np.zeros((len(counts), each, most, 3, size, size), np.float32)
        ratio = np.zeros((len(counts), each), np.int64)
        is_tile = np.zeros((len(counts), each, most), np.int64)
        for row in range(len(counts)):
            for i in range(each):
                ratio[row, i] = rng.randint(1, len(_RATIOS))
                tiles = int(np.prod(_RATIOS[ratio[row, i] - 1]))
                is_tile[row, i, :tiles] = 1
                pixels[row, i, :tiles] = normal(rng, tiles, 3, size, size)
        arrays = {"pixel_values": pixels, "aspect_ratio_ids": ratio, "aspect_ratio_mask": is_tile}

    def batch(side: str) -> dict[str, np.ndarray]:
        found = padded_rows(*rows, side="left")
        return with_mask(found, arrays, image) if arrays else found

    return Drawn(content, batch)


DRAWS = {
    **{name: partial(_gemma4, model_type=name) for name in ("gemma4", "gemma4_unified")},
    "mllama": _mllama,
}
"""By model_type."""
