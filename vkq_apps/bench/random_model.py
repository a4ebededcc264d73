"""Models of a published shape with random weights, made on the device, and prompts for them.

The text tower is what is measured. It is fed by a real CLIP tower of the right number of features,
cut to two layers.
"""

import dataclasses
import math
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from models.families.llava.config import LlavaConfig
from models.families.llava.model import LlavaModel
from models.families.mesh_fit import fit_mesh
from models.inputs.batch import Inputs
from models.layers.activations import Activation
from models.layers.linear import Maker
from models.layers.rope_config import RopeConfig
from models.model import Model
from models.prompts.arrays import inputs_from_arrays
from models.sharding.rules import parameter_sharding
from models.text.config import TextConfig
from models.vision.encoder import EncoderConfig
from models.vision.vit import VitConfig
from pallas_kernels.shapes import ModelShape
from vkq_apps.bench import device_memory

__all__ = [
    "VISION_LAYERS",
    "abstract_model",
    "decode_weight_bytes",
    "drawn_model",
    "llava_config",
    "prompts",
    "random_params",
    "text_config",
]

VISION_LAYERS = 2

# Image and patch sizes: the first whose number of patches divides the visual tokens is taken.
_PICTURES = ((336, 14), (224, 14), (64, 8))


def text_config(shape: ModelShape) -> TextConfig:
    """The text tower of this shape."""
    return TextConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rope=RopeConfig(head_dim=shape.head_dim, max_length=32768, theta=shape.rope_theta),
    )


def llava_config(shape: ModelShape) -> LlavaConfig:
    """A LLaVA whose prompts reach exactly `shape.visual_tokens` with whole pictures."""
    size, patch = next(
        (size, patch)
        for size, patch in _PICTURES
        if shape.visual_tokens % (size // patch) ** 2 == 0
    )
    width = min(1024, shape.width)
    encoder = EncoderConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=max(1, width // 64),
        hidden_act=Activation.QUICK_GELU,
    )
    vision = VitConfig(
        encoder=encoder,
        image_size=size,
        patch_size=patch,
        feature_layers=(VISION_LAYERS,),
    )
    return LlavaConfig(vision=vision, text=text_config(shape), image_token_id=shape.vocab_size - 1)


def abstract_model(shape: ModelShape, mesh: str | None = None) -> Model:
    """The bfloat16 model without memory: shapes in place of parameters."""
    config = llava_config(shape)
    fitted = None if mesh is None else fit_mesh(mesh, config)
    module = nnx.eval_shape(
        lambda: LlavaModel(config, Maker.create(nnx.Rngs(0), jnp.bfloat16, mesh=fitted))
    )
    return dataclasses.replace(Model.from_module(module), mesh=fitted)


def drawn_model(model: Model) -> Model:
    """An `abstract_model` with random weights on its devices, layers apart."""
    params = random_params(model.params, mesh=model.mesh)
    model = dataclasses.replace(model, params=params).unstack_layers()
    jax.block_until_ready(model.params)
    return model


def random_params[T](shapes: T, seed: int = 0, *, mesh: Mesh | None = None) -> T:
    """Parameters of these shapes, drawn in one jit, each device its own: nothing is on the host.

    Norms are the identity, matrices keep the size of what they multiply; blocks of a stack are
    drawn one after another, so that little more memory is ever held than the parameters take.
    """

    def draw(path, leaf, key):
        name = jax.tree_util.keystr(path)
        if "bias" in name:
            return jnp.zeros(leaf.shape, leaf.dtype)
        if "norm" in name:
            return jnp.ones(leaf.shape, leaf.dtype)
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else leaf.shape[-1]
        size = 0.02 if "embed" in name and "kernel" not in name else 1 / math.sqrt(fan_in)

        def normal(key, shape):
            return (size * jax.random.normal(key, shape)).astype(leaf.dtype)

        if leaf.ndim < 3:
            return normal(key, leaf.shape)
        keys = jax.random.split(key, leaf.shape[0])
        return jax.lax.map(lambda key: normal(key, leaf.shape[1:]), keys)

    def make(key):
        flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
        keys = jax.random.split(key, len(flat))
        leaves = [draw(*item, key) for item, key in zip(flat, keys, strict=True)]
        return jax.tree_util.tree_unflatten(structure, leaves)

    shardings = None
    if mesh is not None:
        shardings = nnx.from_flat_state(
            (path, leaf.replace(parameter_sharding(path, mesh)))
            for path, leaf in nnx.to_flat_state(cast(nnx.State, shapes))
        )
    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def decode_weight_bytes(model: Model) -> int:
    """Weights that a decode step reads: the text tower without the rows of the embedding."""
    _, params = nnx.split(model.module().text)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(
        leaf.size * leaf.dtype.itemsize
        for path, leaf in leaves
        if model.config.text.tie_word_embeddings or "embed_tokens" not in jax.tree_util.keystr(path)
    )


def prompts(shape: ModelShape, sequences: int, text_tokens: int, seed: int = 0) -> Inputs:
    """Random prompts: half of the text, `shape.visual_tokens` image tokens, the other half.

    Raises:
        DoesNotFit: they need more memory than the device has.
    """
    config = llava_config(shape)
    tokens = text_tokens + shape.visual_tokens
    pictures = -(-shape.visual_tokens // config.vision.num_features)
    picture_bytes = 4 * 3 * config.vision.image_size**2
    device_memory.check_fits(sequences * (8 * tokens + pictures * picture_bytes), "the prompts")
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.image_token_id, (sequences, tokens))
    start = text_tokens // 2
    ids[:, start : start + shape.visual_tokens] = config.image_token_id
    images = sequences * shape.visual_tokens // config.vision.num_features
    size = config.vision.image_size
    one = rng.normal(size=(1, 3, size, size)).astype(np.float32)
    inputs = inputs_from_arrays(config, ids, None, np.broadcast_to(one, (images, 3, size, size)))
    # Pictures that differ, without drawing them all on the host.
    gain = jnp.linspace(0.5, 1.5, images)[:, None, None, None]
    assert inputs.pixel_values is not None
    return dataclasses.replace(inputs, pixel_values=inputs.pixel_values * gain)
