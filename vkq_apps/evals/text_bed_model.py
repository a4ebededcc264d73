"""A pretrained text model in PyTorch whose cached keys and values can be exchanged."""

import copy
import dataclasses
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vkq_jax.array_types import Float
from vkq_jax.attention.last_queries import LAST_QUERIES

__all__ = ["Observed", "Span", "TextModel", "register"]

_ATTENTION = "vkq_text_bed"


@dataclasses.dataclass(frozen=True)
class Span:
    """How a text is divided: its first positions stay dense, then come the coded ones, V of them,
    and the rest is predicted."""

    dense: int
    coded: int
    predicted: int

    @property
    def prefix(self) -> int:
        """Positions that are read at full precision."""
        return self.dense + self.coded

    @property
    def tokens(self) -> int:
        """Number of tokens of a whole text."""
        return self.prefix + self.predicted


@dataclasses.dataclass(frozen=True)
class Observed:
    """Keys and values at the coded positions of a text, and how the queries after read them.

    Fields as those of `models.calibration.samples.CodeSamples`.
    """

    key: Float[np.ndarray, "L K V H"]
    value: Float[np.ndarray, "L K V H"]
    key_weight: Float[np.ndarray, "L K V"]
    value_weight: Float[np.ndarray, "L K V"]
    query_moment: Float[np.ndarray, "L K H H"]
    query_weight: Float[np.ndarray, "L K"]


class TextModel:
    """A causal model of transformers, at full precision (float32, CPU), with its tokenizer."""

    def __init__(self, model: Any, tokenize: Callable[[str], list[int]], span: Span):
        """`span`: of the texts it will read.

        Raises:
            ValueError: a sliding window is shorter than the texts.
        """
        config = model.config
        window = getattr(config, "sliding_window", None)
        if window is not None and window < span.tokens:
            raise ValueError(
                f"expected texts within the model's sliding window of {window} tokens, got "
                f"{span.tokens}: a window drops positions of the coded part"
            )
        self.model, self.tokenize, self.span = model, tokenize, span
        self.num_layers: int = config.num_hidden_layers
        self.num_kv_heads: int = config.num_key_value_heads

    @classmethod
    def load(cls, path: Path, span: Span) -> "TextModel":
        """Loads a Hugging Face folder, or a GGUF file (with the packages gguf and accelerate).

        Raises:
            ValueError: there is neither, or a package is missing.
        """
        if not (path.is_dir() or path.is_file()):
            raise ValueError(f"--model: expected a folder or a GGUF file, got {path}")
        try:
            import transformers

            attention = register()
            source = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
            tokenizer = transformers.AutoTokenizer.from_pretrained(source[0], **source[1])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of GGUF arrays that cannot be written to
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    source[0], **source[1], dtype="float32", attn_implementation=attention
                )
        except ImportError as error:
            raise ValueError(
                f"the text bed needs PyTorch (uv run --group parity) and, for GGUF files, --with "
                f"gguf --with accelerate: {error}"
            ) from error

        def tokenize(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        return cls(model.eval(), tokenize, span)

    def read(self, ids: list[int]) -> tuple[Any, Float[np.ndarray, "L K V"]]:
        """The cache of a text's prefix, at full precision.

        And the attention that coded positions get from the prefix's last queries, see
        `vkq_jax.attention.last_queries`.
        """
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import DynamicCache

        prefix = self.span.prefix
        paid: dict[int, Any] = {}

        def look(layer: int, query: Any, weights: Any) -> None:
            p = weights[0, :, -LAST_QUERIES:, self.span.dense : prefix]
            paid[layer] = (p * (1 - p)).unflatten(0, (self.num_kv_heads, -1)).sum((1, 2))

        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode(), _observed(self.model, look):
            self._forward(ids[:prefix], cache)
        return cache, np.stack([paid[layer].numpy() for layer in range(self.num_layers)])

    def coded_part(self, cache: Any) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values [L, K, V, H] at the coded positions."""
        part = slice(self.span.dense, self.span.prefix)
        sides = ([layer.keys for layer in cache.layers], [layer.values for layer in cache.layers])
        keys, values = (np.stack([x[0, :, part].numpy() for x in side]) for side in sides)
        return keys, values

    def predict(
        self, ids: list[int], cache: Any, coded: tuple[np.ndarray, np.ndarray] | None = None
    ) -> Any:
        """Log-probabilities [predicted - 1, vocabulary] after the prefix, as a tensor.

        Args:
            ids: of the whole text.
            cache: from `read`; stays as it is.
            coded: keys and values to put in the place of the coded part's.
        """
        import torch  # pyright: ignore[reportMissingImports]

        with torch.inference_mode():
            own = copy.deepcopy(cache)
            part = slice(self.span.dense, self.span.prefix)
            for number, layer in enumerate(own.layers if coded is not None else ()):
                assert coded is not None
                layer.keys[0, :, part] = torch.from_numpy(coded[0][number])
                layer.values[0, :, part] = torch.from_numpy(coded[1][number])
            found = self._forward(ids[self.span.prefix : -1], own, logits=True)
            return found.logits[0].float().log_softmax(-1)

    def observe(self, ids: list[int]) -> Observed:
        """Reads a text and looks at what the predicted positions attend to."""
        import torch  # pyright: ignore[reportMissingImports]

        prefix = self.span.prefix
        part = slice(self.span.dense, prefix)
        seen: dict[int, tuple[Any, ...]] = {}

        def look(layer: int, query: Any, weights: Any) -> None:
            # [heads, queries, ...] -> [K, heads of a KV head, queries, ...]
            q = query[0, :, prefix:].unflatten(0, (self.num_kv_heads, -1))
            p = weights[0, :, prefix:, part].unflatten(0, (self.num_kv_heads, -1))
            spread = p * (1 - p)
            w = spread.sum(-1)
            moment = torch.einsum("kgt,kgth,kgti->khi", w, q, q)
            seen[layer] = (spread.sum((1, 2)), (p * p).sum((1, 2)), moment, w.sum((1, 2)))

        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode(), _observed(self.model, look):
            self._forward(ids, cache)
        looks = [seen[layer] for layer in range(self.num_layers)]
        return Observed(
            *self.coded_part(cache),
            *(np.stack([x.numpy() for x in field]) for field in zip(*looks, strict=True)),
        )

    def _forward(self, ids: list[int], cache: Any, *, logits: bool = False) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        # The head, most of a small model, is left out where nobody reads the logits.
        module = self.model if logits else self.model.base_model
        # How transformers names the argument from 5.24 on, and before.
        known = inspect.signature(module.forward).parameters
        name = "cache" if "cache" in known else "past_key_values"
        return module(torch.tensor(ids, dtype=torch.long)[None], **{name: cache})


class _observed:
    """While it lasts, a function is told each layer's queries and attention weights."""

    def __init__(self, model: Any, look: Callable[[int, Any, Any], None]):
        self.modules = [m for m in model.modules() if hasattr(m, "layer_idx")]
        self.look = look

    def __enter__(self) -> None:
        for module in self.modules:
            module.text_bed_look = self.look

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            del module.text_bed_look


def register() -> str:
    """Makes an attention known to transformers that can be looked at; returns its name."""
    import transformers
    from transformers.masking_utils import eager_mask

    transformers.AttentionInterface.register(_ATTENTION, _attend)
    transformers.AttentionMaskInterface.register(_ATTENTION, eager_mask)
    return _ATTENTION


def _attend(module: Any, query: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The model's own eager attention, looked at."""
    own = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = own(module, query, *args, **kwargs)
    look = getattr(module, "text_bed_look", None)
    if look is not None:
        look(module.layer_idx, query, weights)
    return output, weights
