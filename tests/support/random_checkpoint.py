"""A checkpoint of random weights for any config.json, made without PyTorch."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models
from models import Model
from models.families.registry import family_of
from models.layers.layer_scan import restack_layers
from models.layers.linear import Maker
from models.loading import read_config, save_weights

__all__ = ["write_random_checkpoint"]


def write_random_checkpoint(folder: Path, config: dict, seed: int = 0) -> Model:
    """Writes config.json and weights into a folder and loads it in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    settings = read_config(folder)
    family = family_of(settings.model_type)
    shapes = Model.from_module(
        nnx.eval_shape(lambda: family.build(settings, Maker.create(nnx.Rngs(0))))
    )
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, p.dtype), shapes.params
    )
    save_weights(dataclasses.replace(shapes, params=params), folder)
    loaded = models.load(folder, dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, restack_layers(loaded.params), params)
    return loaded
