"""The embedded model's architecture and how training begins."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models
from models.families.llava.config import LlavaConfig
from models.families.llava.model import LlavaModel
from models.layers.linear import Maker
from models.layers.norms import LayerNorm
from vkq_apps.training.catalogue import NUM_CLASSES
from vkq_apps.training.pictures import NUM_SLOTS, SIZE
from vkq_apps.training.tokenizer import BOS, EOS, IMAGE, PAD, vocab_size
from vkq_jax.array_types import Array, Float

__all__ = [
    "ModelSize",
    "PatchClassifier",
    "TrainedModel",
    "create_model",
    "hf_config",
    "with_checkpoint",
]

PATCH_SIZE, HEAD_DIM = 14, 64


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Sizes of a small model; the defaults are the embedded checkpoint's 10.4 M parameters."""

    width: int = 256
    num_layers: int = 6
    vision_mlp_width: int = 1024
    text_mlp_width: int = 768

    @property
    def num_heads(self) -> int:
        """Heads of both towers."""
        return self.width // HEAD_DIM


def hf_config(size: ModelSize) -> dict[str, Any]:
    """config.json of a LlavaForConditionalGeneration, without the towers' defaults."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": IMAGE,
        "image_seq_length": (SIZE // PATCH_SIZE) ** 2,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": size.width,
            "intermediate_size": size.vision_mlp_width,
            "num_hidden_layers": size.num_layers,
            "num_attention_heads": size.num_heads,
            "projection_dim": size.width,
            "image_size": SIZE,
            "patch_size": PATCH_SIZE,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": vocab_size(),
            "hidden_size": size.width,
            "intermediate_size": size.text_mlp_width,
            "num_hidden_layers": size.num_layers,
            "num_attention_heads": size.num_heads,
            "num_key_value_heads": size.num_heads,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        },
    }


class PatchClassifier(nnx.Module):
    """The auxiliary head: what is in each patch (see `Picture.labels`). Not in the checkpoint.

    It tells the vision tower early what is worth seeing, long before the answers do.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs, dtype: Any):
        self.norm = LayerNorm(width, epsilon=1e-5, param_dtype=jnp.float32)
        self.linear = nnx.Linear(
            width, NUM_SLOTS * NUM_CLASSES, dtype=dtype, param_dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, features: Float[Array, "B P width"]) -> Float[Array, "B P slots classes"]:
        """Scores of the classes, in the compute dtype."""
        scores = self.linear(self.norm(features))
        return scores.reshape(*scores.shape[:-1], NUM_SLOTS, NUM_CLASSES)


class TrainedModel(nnx.Module):
    """The modules that training moves: the LLaVA model and the auxiliary head."""

    def __init__(self, config: LlavaConfig, *, rngs: nnx.Rngs, dtype: Any):
        self.llava = LlavaModel(config, Maker.create(rngs, dtype, jnp.float32))
        self.classifier = PatchClassifier(config.vision.feature_width, rngs=rngs, dtype=dtype)


def create_model(
    size: ModelSize, seed: int, dtype: Any = jnp.bfloat16
) -> tuple[nnx.GraphDef[TrainedModel], nnx.State]:
    """Structure and float32 parameters at the start of training."""
    config = LlavaConfig.from_hf(hf_config(size))

    @jax.jit
    def initial_params() -> nnx.State:
        model = TrainedModel(config, rngs=nnx.Rngs(seed), dtype=dtype)
        state = nnx.state(model)
        key = jax.random.key(seed)
        drawn = [
            (path, leaf.replace(_draw(path, leaf.shape, jax.random.fold_in(key, i), size)))
            for i, (path, leaf) in enumerate(nnx.to_flat_state(state))
        ]
        return nnx.from_flat_state(drawn)

    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: TrainedModel(config, rngs=nnx.Rngs(seed), dtype=dtype))
    )
    return graphdef, initial_params()


def with_checkpoint(params: nnx.State, folder: str) -> nnx.State:
    """Parameters at the start of training, with an exported checkpoint's in place of the LLaVA's.

    Raises:
        ValueError: the checkpoint has another size, or another vocabulary.
    """
    loaded = models.load(folder, dtype=jnp.float32, layers_apart=False).params
    wanted, found = (jax.tree.map(jnp.shape, x) for x in (params["llava"], loaded))
    if wanted != found:
        raise ValueError(
            f"{folder} is a model of another size or vocabulary than the one to train: start from "
            "a checkpoint of this recipe, without --smoke"
        )
    return nnx.State({**params, "llava": loaded})


def _draw(path: tuple[Any, ...], shape: tuple[int, ...], key: Array, size: ModelSize) -> Array:
    """Start of one parameter: normal, narrower where a block adds to the residual stream."""
    name = path[-1]
    if name in ("bias", "class_embedding"):
        return jnp.zeros(shape)
    if "position_embedding" in path:
        return jnp.asarray(_sinusoids(shape))
    if "embed_tokens" in path or "patch_embedding" in path:
        return 0.02 * jax.random.normal(key, shape)
    if name == "weight":  # of a norm
        return jnp.ones(shape)
    deviation = 0.7 * shape[-2] ** -0.5
    if path[-2] in ("o_proj", "out_proj", "down_proj", "fc2"):
        deviation /= math.sqrt(2 * size.num_layers)
    return deviation * jax.random.normal(key, shape)


def _sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """Positions [1 + side^2, width] start as 2-D sines and cosines: neighbours look alike."""
    positions, width = shape
    side, quarter = math.isqrt(positions - 1), width // 4
    angles = np.arange(side)[:, None] * 100.0 ** (-np.arange(quarter) / quarter)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    rows = np.broadcast_to(waves[:, None], (side, side, 2 * quarter))
    columns = np.broadcast_to(waves[None], (side, side, 2 * quarter))
    table = np.concatenate([rows, columns], -1).reshape(side * side, width)
    return np.concatenate([np.zeros((1, width)), 0.05 * table]).astype(np.float32)
