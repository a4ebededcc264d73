"""A row of `vkq bench throughput` by transformers' own `generate`, in PyTorch.

The text tower of a shape with random bfloat16 weights, prompts of text that are as long as those
of pictures, and the cache that `generate` takes by default. JAX keeps off the device meanwhile.
"""

import importlib
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import vkq_jax
from pallas_kernels.shapes import ModelShape, find_shape
from vkq_apps.bench.codes import BASELINE, read_codes
from vkq_apps.bench.random_model import abstract_model, decode_weight_bytes, text_config
from vkq_apps.bench.sequence_cache import abstract_cache, per_sequence
from vkq_apps.bench.throughput import ThroughputSetup, batches_of
from vkq_apps.bench.timing import step_figures

__all__ = ["measure_transformers"]

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""Fields of a text tower that are called the same here and there."""


def measure_transformers(
    setup: ThroughputSetup, row: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Fills `row` as `measure_throughput` does, as far as the two have figures in common.

    Raises:
        NotImplementedError: codes or a mesh, or no PyTorch.
    """
    if setup.preset != BASELINE or setup.mesh is not None:
        raise NotImplementedError("transformers runs bfloat16 on one device")
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise NotImplementedError("transformers runs with PyTorch, which is not here") from error
    # By its name, as torch: no type of it is known where it is not installed.
    transformers = importlib.import_module("transformers")
    shape = find_shape(setup.shape)
    cache = abstract_cache(shape, read_codes(setup.preset), 1, setup.text_capacity)
    nbytes = per_sequence(vkq_jax.cache_nbytes(cache), 1)
    batch = row["batch"] = max(batches_of(setup, nbytes["total"], 1, 1)[0])
    row |= {
        "implementation_taken": setup.implementation,
        "torch": importlib.metadata.version("torch"),
        "visual_tokens": shape.visual_tokens,
        "bytes_per_sequence": nbytes,
        "weight_bytes": decode_weight_bytes(abstract_model(shape)),
        "equal_batch": None,
    }
    if not batch:
        row |= {"status": "does not fit", "message": "a sequence takes more than the budget"}
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    say(f"decoding {batch} sequences by transformers on {device}")
    with torch.device(device), torch.inference_mode():
        model = transformers.LlamaForCausalLM._from_config(
            _config(transformers, shape), dtype=torch.bfloat16
        )
        model.eval()
        tokens = torch.randint(shape.vocab_size, (batch, shape.visual_tokens + setup.prompt_text))
        steps = [_seconds_a_step(torch, model, tokens, setup) for _ in range(1 + setup.repeats)][1:]
    figures = step_figures(batch, steps)
    row |= {"batches": [{"batch": batch, **figures}], **figures}
    row["peak_bytes"] = torch.cuda.max_memory_allocated() if device == "cuda" else None


def _config(transformers: Any, shape: ModelShape) -> Any:
    ours = text_config(shape)
    return transformers.LlamaConfig(
        **{name: getattr(ours, name) for name in _SIZES},
        max_position_embeddings=ours.rope.max_length,
        tie_word_embeddings=False,
        eos_token_id=None,
    )


def _seconds_a_step(torch: Any, model: Any, tokens: Any, setup: ThroughputSetup) -> float:
    """Seconds of a step between the first `short_steps` tokens and all of `long_steps`."""
    ends: list[float] = []

    def stamp(ids: Any, scores: Any, **_: Any) -> Any:
        if ids.is_cuda:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=setup.long_steps,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=[stamp],
    )
    return (ends[-1] - ends[setup.short_steps - 1]) / (setup.long_steps - setup.short_steps)
