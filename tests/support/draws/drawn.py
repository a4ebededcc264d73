"""One draw of a configuration, and transformers' model of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.hf_parity import randomize

__all__ = ["Drawn", "torch_model"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A config.json, and what a processor makes of prompts with pictures.

    Attributes:
        content: of the file.
        batch: the processor's arrays, padded on the side of a name, "left" or "right"; takes
            transformers' model, too, where `needs_model`.
        positions: whether transformers' model takes positions of one axis.
    """

    content: dict[str, Any]
    batch: Callable[..., dict[str, np.ndarray]]
    needs_model: bool = False
    positions: bool = True

    def arrays(self, side: str, theirs: Any) -> dict[str, np.ndarray]:
        """The batch."""
        return self.batch(side, theirs) if self.needs_model else self.batch(side)


def torch_model(content: dict[str, Any], seed: int) -> Any:
    """transformers' model with random weights and buffers, which bfloat16 holds."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    settings = AutoConfig.for_model(**content)
    torch.manual_seed(seed)
    # Other implementations than this one know no soft-cap.
    kinds = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForImageTextToText.from_config(settings, **kinds)
    randomize(model, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if settings.model_type.startswith("gemma4"):
                _condition_gemma4(name, weight)
    for name, buffer in model.named_buffers():
        part = name.rsplit(".", 1)[-1]
        if part == "layer_scalar" or part.startswith("std_"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
        elif part in ("input_max", "output_max") and "layers.0" in name:
            buffer.fill_(1.0)  # the others stay infinite
        elif part == "e_score_correction_bias":
            buffer.uniform_(-0.3, 0.3)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())
    return model


def _condition_gemma4(name: str, weight: Any) -> None:
    """Scores have no scale, so that rounding grows where norms of keys do not hold it."""
    if name.endswith("k_norm.weight"):
        weight.mul_(weight.numel() ** -0.5)
    if name.endswith("embed_tokens.weight"):  # the head, too
        weight.mul_(0.5)
    if name.endswith("per_layer_input_gate.weight"):
        weight.mul_(0.2)  # PyTorch's GELU loses digits in its tail, which a norm would show
