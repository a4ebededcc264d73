"""Types and ranges of fields that the config.json of every model family has."""

from typing import Annotated

from models.checkpoints.hf_settings import Between, OneOf
from models.layers.activations import Activation

__all__ = [
    "NO_EFFECT",
    "NO_EFFECT_OF_ROUTERS",
    "ActivationName",
    "Count",
    "Epsilon",
    "Factor",
    "GemmaActivationName",
    "Length",
    "Side",
    "Theta",
    "TokenId",
    "TokenIds",
    "Width",
    "token_ids",
]

# Sizes reach far above all published models, and are low enough for no product to overflow.
# The files tell the true ones: `models.checkpoints.weights.check_sizes` compares.
Width = Annotated[int, Between(1, 2**22)]
"""Channels, or tokens of a vocabulary."""
Count = Annotated[int, Between(1, 2**12)]
"""Layers, heads, or channels of a head."""
Side = Annotated[int, Between(1, 2**14)]
"""Pixels."""
Length = Annotated[int, Between(1, 2**31 - 1)]
"""Positions, which are int32."""
TokenId = Annotated[int, Between(0, 2**31 - 1)]
TokenIds = TokenId | tuple[TokenId, ...]

# Within these ranges float32 neither overflows nor vanishes.
Epsilon = Annotated[float, Between(1e-30, 1)]
Theta = Annotated[float, Between(1.001, 1e30)]
Factor = Annotated[float, Between(1e-3, 1e6)]

_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "quick_gelu": Activation.QUICK_GELU,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}

ActivationName = Annotated[Activation, OneOf(_ACTIVATIONS)]
# Gemma's first files say "gelu" and mean the approximation.
GemmaActivationName = Annotated[Activation, OneOf(_ACTIVATIONS | {"gelu": Activation.GELU_TANH})]

NO_EFFECT = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "initializer_factor",
        "initializer_range",
        "pad_token_id",
        "pretraining_tp",
        "projection_dim",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Fields of training and of PyTorch's classes."""

NO_EFFECT_OF_ROUTERS = frozenset({"output_router_logits", "router_aux_loss_coef"})
"""The same of a mixture of experts."""


def token_ids(setting: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """The token ids of a field that holds one, several or none."""
    return () if setting is None else (setting,) if isinstance(setting, int) else setting
