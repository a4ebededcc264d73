"""A model as plain data: parameters that jit sees, structure that it does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from models.families.base import ModelConfig, MultimodalModel
from models.families.registry import family_of
from models.layers.layer_scan import UnstackedParam, unstack_layers
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.settings.calibrated import CalibratedCodes

__all__ = ["AttachedCodes", "Model"]


@dataclasses.dataclass(frozen=True)
class AttachedCodes:
    """Calibrated presets as a model's static part: equal where their files are equal.

    Attributes:
        digest: of the file.
        codes: its content.
    """

    digest: str
    codes: CalibratedCodes = dataclasses.field(compare=False, repr=False)


@frozen_pytree
class Model:
    """A model that can be passed to jit, grad and vmap.

    Attributes:
        params: the parameters, blocks stacked along a leading axis L or `UnstackedParam`s.
        graphdef: what `nnx.split` said of the module besides its parameters.
        config: the architecture's settings.
        source: folder that the model was loaded from, if any (its processor lies there).
        calibrated: presets calibrated for this model, if any.
        mesh: devices that the model is split over, as `models.families.mesh_fit.fit_mesh` has them;
            None: one device holds it.
    """

    params: Any
    graphdef: nnx.GraphDef[MultimodalModel] = static_field()
    config: ModelConfig = static_field()
    source: str | None = static_field(default=None)
    calibrated: AttachedCodes | None = static_field(default=None)
    mesh: Mesh | None = static_field(default=None)

    @classmethod
    def from_module(cls, module: MultimodalModel, source: str | None = None) -> Model:
        """The model that shares `module`'s parameters."""
        graphdef, params = nnx.split(module)
        return cls(params=params, graphdef=graphdef, config=module.config, source=source)

    @property
    def visual_depends_on_question(self) -> bool:
        """Whether visual keys and values see the question, so that coding has to wait for it."""
        return family_of(self.config.model_type).visual_depends_on_question

    def unstack_layers(self) -> Model:
        """This model with the text tower's layers in buffers apart; `self` loses its buffers.

        Each decode step then reads the weights where they lie instead of copying them layer by
        layer: steps more than twice as fast on a GPU, for a compilation that grows with the number
        of layers. See `models.layers.layer_scan.UnstackedParam`.
        """

        def apart(path, leaf):
            name = jax.tree_util.keystr(path)
            stacks = self.config.text.stacks
            stacked = any(f"['text']['{stack}']" in name for stack in stacks)
            if isinstance(leaf, UnstackedParam) or not stacked:
                return leaf
            return unstack_layers(leaf)

        params = jax.tree_util.tree_map_with_path(
            apart, self.params, is_leaf=lambda x: isinstance(x, UnstackedParam)
        )
        return dataclasses.replace(self, params=params)

    def module(self) -> MultimodalModel:
        """The Flax module that shares these parameters."""
        return nnx.merge(self.graphdef, self.params)
