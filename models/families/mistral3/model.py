"""Mistral Small 3 and Pixtral as one module: pictures and token ids to embeddings and logits."""

from models.families.any_grid import AnyGridModel
from models.families.mistral3.config import Mistral3Config
from models.layers.linear import Maker
from models.vision.projectors import MlpProjector, NormedMergingProjector

__all__ = ["Mistral3Model"]


class Mistral3Model(AnyGridModel):
    """Three parts: `vision`, `projector` and `text`."""

    def make_projector(self, config: Mistral3Config, make: Maker) -> MlpProjector:
        """See `AnyGridModel.make_projector`."""
        width, hidden_size = config.vision.encoder.hidden_size, config.text.hidden_size
        act, bias = config.projector_hidden_act, config.multimodal_projector_bias
        if not config.norm_and_merge:
            return MlpProjector(make, width, hidden_size, act, bias=bias)
        return NormedMergingProjector(
            make,
            width,
            hidden_size,
            act,
            bias=bias,
            merge=config.vision.merge,
            epsilon=config.text.rms_norm_eps,
        )
