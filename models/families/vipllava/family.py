"""VipLLaVA as a family: LLaVA's, with a norm before the projector."""

import dataclasses

from models.families.llava.family import FAMILY as LLAVA
from models.families.llava.model import LlavaModel
from models.families.vipllava.config import VipLlavaConfig
from models.layers.linear import Maker
from models.layers.norms import LayerNorm
from models.vision.projectors import MlpProjector
from vkq_jax.array_types import Array, Float

__all__ = ["FAMILY", "VipLlavaModel"]


class _Projector(MlpProjector):
    """The MLP behind a layer norm of the features of all layers side by side."""

    def __init__(self, config: VipLlavaConfig, make: Maker):
        width = config.vision.feature_width
        act = config.projector_hidden_act
        super().__init__(make, width, config.text.hidden_size, act, bias=True)
        self.projector_layernorm = LayerNorm(
            width, epsilon=config.projector_layernorm_eps, param_dtype=make.param_dtype
        )

    def __call__(
        self, features: Float[Array, "images features feature_width"]
    ) -> Float[Array, "images features hidden_size"]:
        return super().__call__(self.projector_layernorm(features))


class VipLlavaModel(LlavaModel):
    """LLaVA's parts, the projector with a norm of its own."""

    def make_projector(self, config: VipLlavaConfig, make: Maker) -> MlpProjector:
        """See `FixedGridModel.make_projector`."""
        return _Projector(config, make)


FAMILY = dataclasses.replace(LLAVA, read_config=VipLlavaConfig.from_hf, build=VipLlavaModel)
