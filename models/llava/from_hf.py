"""Translation of single Hugging Face settings, each refused by name where it has no equivalent."""

from typing import Any

from models.layers import Activation
from models.rope import RopeConfig, RopeKind

__all__ = ["activation", "read_rope", "read_window", "require", "square"]

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

_ROPE_FIELDS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_length",
    "attention_factor": "attention_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}


def activation(name: str, setting: str) -> Activation:
    """The activation called `name`."""
    if name not in _ACTIVATIONS:
        raise NotImplementedError(f"{setting}={name!r}; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def require(hf: Any, setting: str, *expected: Any, where: str) -> None:
    """Refuses a configuration whose `setting` (None where absent) is none of `expected`."""
    got = getattr(hf, setting, None)
    if got not in expected:
        supported = ", ".join(map(repr, expected))
        raise NotImplementedError(f"{where}.{setting}={got!r}; this port supports {supported}")


def square(size: int | list[int] | tuple[int, ...], setting: str) -> int:
    """The side of a square given as one number or two equal ones."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise NotImplementedError(f"{setting}={size}; this port supports squares")
    return sides.pop()


def read_window(hf: Any) -> tuple[int | None, tuple[int, ...]]:
    """Width of a text tower's sliding window, None without one, and the layers it leaves alone.

    A LLaMA tower of transformers has none whatever its settings say, a Mistral tower one in all
    layers, a Ministral tower in those that are called so.
    """
    if hf.model_type == "llama":
        require(hf, "sliding_window", None, where="text_config")
    if hf.model_type != "ministral":
        require(hf, "layer_types", None, where="text_config")
    window, kinds = getattr(hf, "sliding_window", None), getattr(hf, "layer_types", None)
    if window is not None and not 1 <= window < 2**31:  # positions are int32
        raise ValueError(f"text_config.sliding_window must lie in [1, 2**31), got {window}")
    if kinds is None:
        return window, ()
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise NotImplementedError(f"text_config.layer_types has {', '.join(sorted(unknown))}")
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    if len(full) == len(kinds):
        return None, ()
    if window is None:
        raise ValueError("text_config.layer_types has sliding_attention, sliding_window is None")
    return window, full


def read_rope(hf: Any, head_dim: int) -> RopeConfig:
    """The rotary embedding of a text tower, whose reader converts the names of transformers 4."""
    parameters = dict(hf.rope_parameters)
    partial = parameters.pop("partial_rotary_factor", 1.0)
    if partial not in (None, 1.0):
        raise NotImplementedError(f"text_config.rope_parameters partial_rotary_factor={partial}")
    kind = parameters.pop("rope_type", "default")
    if kind not in list(RopeKind):
        raise NotImplementedError(
            f"text_config.rope_parameters rope_type={kind!r}; supported: {', '.join(RopeKind)}"
        )
    settings: dict[str, Any] = {
        field: tuple(parameters[name]) if isinstance(parameters[name], list) else parameters[name]
        for name, field in _ROPE_FIELDS.items()
        if parameters.get(name) is not None
    }
    return RopeConfig(
        head_dim=head_dim,
        max_length=hf.max_position_embeddings,
        kind=RopeKind(kind),
        theta=parameters["rope_theta"],
        **settings,
    )
