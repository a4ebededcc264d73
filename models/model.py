"""A model as plain data: parameters that jit sees, structure that it does not."""

from __future__ import annotations

from typing import Any

from flax import nnx

from models.llava.config import LlavaConfig
from models.llava.model import LlavaModel
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["Model"]


@frozen_pytree
class Model:
    """A model that can be passed to jit, grad and vmap.

    Attributes:
        params: the parameters, blocks stacked along a leading axis L.
        graphdef: what `nnx.split` said of the module besides its parameters.
        config: the architecture's settings.
        source: folder that the model was loaded from, if any (its processor lies there).
    """

    params: Any
    graphdef: nnx.GraphDef[LlavaModel] = static_field()
    config: LlavaConfig = static_field()
    source: str | None = static_field(default=None)

    @classmethod
    def from_module(cls, module: LlavaModel, source: str | None = None) -> Model:
        """The model that shares `module`'s parameters."""
        graphdef, params = nnx.split(module)
        return cls(params=params, graphdef=graphdef, config=module.config, source=source)

    def module(self) -> LlavaModel:
        """The Flax module that shares these parameters."""
        return nnx.merge(self.graphdef, self.params)
