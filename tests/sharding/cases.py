"""Tiny checkpoints of each kind of text decoder, loaded and run on one device and on meshes."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import models
from models import Generation, Inputs, Model
from models.prompts.arrays import inputs_from_arrays
from tests.models.families import test_gemma4, test_mllama
from tests.models.hf_files import IMAGE_TOKEN, config_json
from tests.support import qwen_vl
from tests.support.random_checkpoint import write_random_checkpoint
from vkq_jax import DictionaryCodes, KVQuantConfig, PerLayer, TokenClass

BATCH, STEPS = 8, 4
_SIDES = [DictionaryCodes((TokenClass(1.0, 1),), codebook=size) for size in (16, 8)]
RIVALS = tuple(KVQuantConfig(side, side) for side in _SIDES)
"""Plans of a preset that are fitted in a moment."""


def _llava(kv_heads: int, model_type: str = "llama", **text: Any) -> dict[str, Any]:
    sizes = {
        "model_type": model_type,
        "num_attention_heads": 8,
        "num_key_value_heads": kv_heads,
        "head_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    return config_json(text=sizes | text)


_FULL = {"rope_type": "default", "rope_theta": 5000.0}
CONFIGS = {
    "8 KV heads": _llava(8),
    "4 KV heads": _llava(4),
    "2 KV heads, odd vocabulary": _llava(2, vocab_size=61),
    "1 KV head": _llava(1),
    "heads of 64": _llava(4, head_dim=64),
    "key bias": _llava(2, "qwen2"),
    "fused projections": _llava(
        4,
        "phi3",
        head_dim=4,
        original_max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
    ),
    "sliding window": _llava(
        4,
        "ministral",
        sliding_window=9,
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters=_FULL,
    ),
    "experts": qwen_vl.config_json("qwen3_vl_moe"),
}
_MOE = {"num_experts": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
CONFIGS["experts"]["text_config"] |= _MOE
_SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 32}
# Decoders of several kinds of layers.
KINDS = {
    "cross-attention": test_mllama.config_json(
        text=_SIZES | {"intermediate_size": 32, "vocab_size": 64}, image_token_index=64
    ),
    "linear attention": qwen_vl.config_json("qwen3_5"),
}
KINDS["linear attention"]["text_config"] |= _SIZES | {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}
KINDS["other heads"] = test_gemma4.config_json(
    text=_SIZES
    | {
        "num_global_key_value_heads": 2,
        "intermediate_size": 32,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 8,
    }
)
CONFIGS |= KINDS


class Cases:
    """Models and their answers, each made once."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cache  # noqa: B019  # the object lives as long as the tests
    def model(self, name: str, mesh: str | None = None) -> Model:
        if mesh is None:
            return write_random_checkpoint(self.folder / name, CONFIGS[name])
        self.model(name)
        return models.load(self.folder / name, dtype=jnp.float32, mesh=mesh)

    @cache  # noqa: B019
    def generation(
        self,
        name: str,
        mesh: str | None = None,
        quant: str | PerLayer = "vkq-1bit",
        text_bits: Literal[8] | None = None,
        batch: int = BATCH,
    ) -> Generation:
        model = self.model(name, mesh)
        return models.generate(
            model,
            inputs_of(model, batch),
            max_new_tokens=STEPS,
            stop_tokens=(),
            quant=quant,
            text_bits=text_bits,
        )


def inputs_of(model: Model, batch: int = BATCH) -> Inputs:
    """Prompts of unlike lengths, each with a picture."""
    rng = np.random.default_rng(0)
    if model.config.model_type == "mllama":
        return _with_tiles(model, rng, batch)
    if model.config.model_type == "gemma4":
        return _with_patches(model, rng, batch)
    if model.config.model_type != "llava":
        rows = [[2 + row % 3, ("image", 4, 4 + 2 * (row % 2)), 3] for row in range(batch)]
        arrays = qwen_vl.batch(rows, rng)
        return inputs_from_arrays(model.config, **arrays)
    ids = rng.integers(IMAGE_TOKEN + 1, model.config.text.vocab_size, (batch, 14))
    ids[:, 3:7] = IMAGE_TOKEN
    mask = np.ones(ids.shape, bool)
    mask[1:2, :2] = False
    pixels = rng.normal(size=(batch, 3, 28, 28)).astype(np.float32)
    return inputs_from_arrays(model.config, ids, mask, pixels)


def _with_tiles(model: Model, rng: np.random.Generator, batch: int) -> Inputs:
    """Prompts that read a picture of one or two tiles in cross-attention layers."""
    ids = rng.integers(2, 60, (batch, 10))
    ids[:, 3] = model.config.image_token_id
    mask = np.ones(ids.shape, bool)
    mask[1:2, :2] = False
    tiles = np.zeros((batch, test_mllama.TILES), int)
    tiles[:, 0] = tiles[::2, 1] = 1
    side = test_mllama.SIZE
    return inputs_from_arrays(
        model.config,
        ids,
        mask,
        rng.normal(size=(*tiles.shape, 3, side, side)).astype(np.float32),
        aspect_ratio_ids=tiles.sum(-1),
        aspect_ratio_mask=tiles,
    )


def _with_patches(model: Model, rng: np.random.Generator, batch: int) -> Inputs:
    """Prompts with a picture of 4 x 4 patches each, four of which are a visual token."""
    ids = rng.integers(3, test_gemma4.BEGIN_ID, (batch, 10))
    ids[:, 3:7] = model.config.image_token_id
    mask = np.ones(ids.shape, bool)
    mask[1:2, :2] = False
    places = np.tile(np.indices((4, 4))[::-1].reshape(2, -1).T, (batch, 1, 1))
    pixels = rng.uniform(size=(batch, 16, 3 * test_gemma4.PATCH**2)).astype(np.float32)
    return inputs_from_arrays(model.config, ids, mask, pixels, image_position_ids=places)


def assert_same(got: Any, expected: Any) -> None:
    """Structures, lengths and numbers of tokens are equal, floats up to a few roundings.

    Sums in another order round otherwise: a scale in 8 bits may come to lie on the next step, and
    the bit of a coordinate next to a level's edge may flip. Layers behind one see a difference.
    """
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    pairs = [
        (jax.tree_util.keystr(path), np.asarray(x), np.asarray(y))
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
        )
    ]
    same_codes = True
    for name, x, y in pairs:
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        if x.dtype in (np.uint8, np.int8):
            steps = np.abs(np.int32(x) - np.int32(y))
            assert steps.max(initial=0) <= 1, name
            assert np.count_nonzero(steps) <= 0.01 * steps.size, name
            same_codes &= not steps.any()
        elif x.dtype in (np.uint16, np.uint32):
            flipped = np.bitwise_count(x ^ y).sum()
            assert flipped <= 1e-3 * 8 * x.nbytes, name
            same_codes &= not flipped
        elif not jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_array_equal(x, y, err_msg=name)
    for name, x, y in pairs:
        if jnp.issubdtype(x.dtype, jnp.floating):
            eps = float(jnp.finfo(x.dtype).eps)
            # Centres in bfloat16 may come to lie on the next number.
            off = 64 * eps if same_codes else max(1e-3, eps)
            x, y = np.float32(x), np.float32(y)
            # Terms of a sum round by their own size, not by that of the sum.
            size = max(1.0, np.abs(y).max(initial=0.0))
            np.testing.assert_allclose(x, y, rtol=off, atol=off * size, err_msg=name)
