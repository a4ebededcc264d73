"""A LLaVA of a few thousand random parameters, without a checkpoint or a processor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import Inputs, Model, forward
from models.families.llava.config import LlavaConfig
from models.families.llava.model import LlavaModel
from models.layers.activations import Activation
from models.layers.linear import Maker
from models.layers.rope_config import RopeConfig
from models.prompts.arrays import inputs_from_arrays
from models.text.config import TextConfig
from models.vision.encoder import EncoderConfig
from models.vision.vit import VitConfig

IMAGE = 63
VISUAL_TOKENS = 16

CONFIG = LlavaConfig(
    vision=VitConfig(
        encoder=EncoderConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act=Activation.QUICK_GELU,
        ),
        image_size=16,
        patch_size=4,
        feature_layers=(1,),
    ),
    text=TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rope=RopeConfig(head_dim=16, max_length=512),
    ),
    image_token_id=IMAGE,
    eos_token_ids=(2,),
)

# A sliding window shorter than an image, in all layers but one.
WINDOWED = dataclasses.replace(
    CONFIG, text=dataclasses.replace(CONFIG.text, sliding_window=9, full_layers=(1,))
)


def tiny_model(dtype=jnp.float32, seed: int = 0, config: LlavaConfig = CONFIG) -> Model:
    """Random weights, wide enough for logits to lie far apart."""
    module = nnx.eval_shape(lambda: LlavaModel(config, Maker.create(nnx.Rngs(0), dtype)))
    shapes = Model.from_module(module)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        centre = 1.0 if "norm" in name and "weight" in name else 0.0
        return jnp.asarray(centre + 0.2 * rng.normal(size=leaf.shape), leaf.dtype)

    return dataclasses.replace(shapes, params=jax.tree_util.tree_map_with_path(draw, shapes.params))


def biased_model() -> Model:
    """A tiny model whose key biases dwarf what they are added to, as Qwen2's do."""
    text = dataclasses.replace(CONFIG.text, attention_bias=True, attention_output_bias=True)
    model = tiny_model(config=dataclasses.replace(CONFIG, text=text))

    def change(path, leaf):
        return 150 * leaf if "['k_proj']['bias']" in jax.tree_util.keystr(path) else leaf

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(change, model.params))


def prompt(*parts: int | str, seed: int = 0) -> list[int]:
    """Token ids: an int is that many text tokens, "image" the tokens of one image."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    for part in parts:
        if part == "image":
            ids += [IMAGE] * VISUAL_TOKENS
        else:
            ids += rng.integers(3, IMAGE, int(part)).tolist()
    return ids


def batch(*rows: list[int], side: str = "right", seed: int = 0) -> Inputs:
    """Inputs of rows padded at one side, with random images."""
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place], mask[i, place] = row, True
    images = int((ids == IMAGE).sum()) // VISUAL_TOKENS
    pixels = np.random.default_rng(seed).normal(size=(images, 3, 16, 16)).astype(np.float32)
    return inputs_from_arrays(CONFIG, ids, mask, pixels if images else None)


def greedy_without_cache(model: Model, inputs: Inputs, steps: int) -> np.ndarray:
    """The next token of a whole forward pass, over and over: one sequence.

    Padded behind to its final length, so that all passes are one compiled program.
    """
    start = inputs.input_ids.shape[1]
    ids = np.pad(np.asarray(inputs.input_ids), ((0, 0), (0, steps)))
    for end in range(start, start + steps):
        mask = np.arange(start + steps)[None] < end
        again = inputs_from_arrays(model.config, ids, mask, inputs.pixel_values)
        ids[0, end] = int(forward(model, again)[0, end - 1].argmax())
    return ids[0, start:]
