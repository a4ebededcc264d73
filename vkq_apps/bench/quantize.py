"""Cost of coding a layer's keys and values beside the prefill of that layer.

Both are timed at the same number of tokens: a whole decoder block of the real text tower, and what
`models.generation.prefill` does with the keys and values that the block leaves: XLA codes them and
lays them out for attention; where the fused kernel applies, which prefill then takes, it has
another row. On a GPU times are the device's own: in a prefill the host is far ahead of it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import pallas_kernels
import vkq_jax
from models.layers.attention import causal_mask, dense_attention
from models.layers.linear import Maker
from models.text.decoder import TextDecoder
from pallas_kernels.shapes import ModelShape, find_shape
from vkq_apps.bench import device_memory
from vkq_apps.bench.compiling import compile_ahead
from vkq_apps.bench.prefilling import most_sequences
from vkq_apps.bench.random_model import random_params, text_config
from vkq_apps.bench.sequence_cache import abstract_visual, random_tokens
from vkq_apps.bench.timing import LayerTime, time_of_calls
from vkq_jax.array_types import Array
from vkq_jax.cache.visual_bank import VisualBank, quantize_visual
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["GOAL_PERCENT", "QuantizeSetup", "measure_quantize", "plan_quantize"]

GOAL_PERCENT = 3.0

# Copies of the keys and values to be coded: more than a GPU's cache holds, but few to compile.
_CACHE_BYTES, _MOST_COPIES = 1.5e8, 6


@dataclasses.dataclass(frozen=True)
class QuantizeSetup:
    """Settings of one row.

    Attributes:
        shape: name in `pallas_kernels.shapes`.
        preset: of the visual cache.
        prompt_text: text tokens of a prompt beside the visual ones.
        sequences: at once; None: as many as `most_sequences` says.
        repeats: of each timing.
        implementation: of coding, see `pallas_kernels.quantize_bank`.
    """

    shape: str
    preset: str
    prompt_text: int = 32
    sequences: int | None = None
    repeats: int = 7
    implementation: str = "xla"

    def __post_init__(self) -> None:
        """Checks the names."""
        find_shape(self.shape)
        vkq_jax.resolve(self.preset)

    @property
    def key(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """For people."""
        return f"{self.shape}, {self.preset}, coded by {self.implementation}"


def plan_quantize(
    shapes: Sequence[str],
    presets: Sequence[str],
    *,
    prompt_text: int,
    sequences: int | None,
    repeats: int,
) -> list[QuantizeSetup]:
    """A row by XLA for each shape and preset, and one by the fused kernel where it applies."""
    device_memory.claim_memory()  # whether it applies is asked of the device
    setups = []
    for shape in shapes:
        for preset in presets:
            setup = QuantizeSetup(shape, preset, prompt_text, sequences, repeats)
            setups.append(setup)
            if _default(setup) == "mosaic_gpu":
                setups.append(dataclasses.replace(setup, implementation="mosaic_gpu"))
    return setups


def measure_quantize(setup: QuantizeSetup, row: dict[str, Any]) -> None:
    """Fills the row: times of the block and of coding, their ratio, and what coding loses."""
    shape, quant = find_shape(setup.shape), vkq_jax.resolve(setup.preset)
    sequences = setup.sequences or most_sequences(shape, setup.prompt_text)
    tokens = shape.visual_tokens + setup.prompt_text
    start = setup.prompt_text // 2
    kept = 4 * sequences * tokens * shape.num_kv_heads * shape.head_dim
    device_memory.check_fits(2 * kept, "two copies of the keys and values in bfloat16")
    index = start + jnp.arange(shape.visual_tokens, dtype=jnp.int32)
    index = jnp.broadcast_to(index, (sequences, shape.visual_tokens))
    valid = jnp.ones(index.shape, bool)

    block = _time_of_block(shape, sequences, tokens, setup.repeats)
    row |= {
        "sequences_at_once": sequences,
        "tokens": tokens,
        "timed_by": block.timed_by,
        "block_ms": 1e3 * block.best,
    }
    dims = (sequences, tokens, shape.num_kv_heads, shape.head_dim)
    copies = max(2, min(_MOST_COPIES, int(_CACHE_BYTES / (4 * math.prod(dims)))))
    layers = [_keys_and_values(dims, seed) for seed in range(copies)]

    def code(layers, index, valid):
        banks = (
            pallas_kernels.quantize_bank(
                key, value, index, valid, quant, implementation=setup.implementation
            )
            for key, value in layers
        )
        # As attention reads it here.
        return [pallas_kernels.to_kernel_layout(bank) for bank in banks]

    compiled = compile_ahead(jax.jit(code), layers, index, valid)
    arguments = layers, index, valid
    coding = time_of_calls(compiled.call, *arguments, steps=copies, repeats=setup.repeats)
    row |= {
        "coding_ms": 1e3 * coding.best,
        "coding_wall_ms": 1e3 * coding.wall,
        "coding_percent": 100 * coding.best / block.best,
        "coding_temporary_bytes": compiled.temporary_bytes,
        "coding_compile_seconds": compiled.seconds,
    }
    bank = compiled.call(layers, index, valid)[0]
    errors = _errors(bank, *layers[0], index, valid, quant)
    row |= {name: float(error) for name, error in errors.items()}


def _default(setup: QuantizeSetup) -> str:
    """The implementation that codes it in prefill, on this device."""
    shape, quant = find_shape(setup.shape), vkq_jax.resolve(setup.preset)
    x, index = abstract_visual(shape)
    return pallas_kernels.choose_coding(x, x, index, quant)


@functools.cache
def _time_of_block(shape: ModelShape, sequences: int, tokens: int, repeats: int) -> LayerTime:
    """Time of a decoder block (and the final norm) over whole prompts, attention as in prefill."""
    config = dataclasses.replace(text_config(shape), num_hidden_layers=1, vocab_size=2)
    tower = nnx.eval_shape(lambda: TextDecoder(config, Maker.create(nnx.Rngs(0), jnp.bfloat16)))
    graphdef, shapes = nnx.split(tower)
    params = random_params(shapes)
    x = jax.random.normal(jax.random.key(1), (sequences, tokens, shape.width), jnp.bfloat16)
    positions = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (sequences, tokens))

    @jax.jit
    def block(params, x, positions):
        mask = causal_mask(jnp.ones(positions.shape, bool))

        def attend(layer, query, key, value, carry):
            output = dense_attention(
                query,
                key,
                value,
                mask,
                logits_scale=config.logits_scale,
                logits_soft_cap=config.attn_logit_softcapping,
            )
            return output, carry, (key, value)

        return nnx.merge(graphdef, params)(x, positions, attend)

    compiled = compile_ahead(block, params, x, positions)
    return time_of_calls(compiled.call, params, x, positions, repeats=repeats)


def _keys_and_values(dims: tuple[int, ...], seed: int) -> tuple[Array, Array]:
    draw = jax.jit(random_tokens, static_argnums=1)
    key, value = jax.random.split(jax.random.key(seed))
    return draw(key, dims), draw(value, dims)


@functools.partial(jax.jit, static_argnames="quant")
def _errors(
    bank: VisualBank, key: Array, value: Array, index: Array, valid: Array, quant: KVQuantConfig
) -> dict[str, Array]:
    """How far coded values are from the exact ones, and from plain coding of the same values."""
    exact = quantize_visual(key, value, index, valid, vkq_jax.resolve("none"))
    plain = quantize_visual(key, value, index, valid, quant)
    found = {}
    for name in ("key", "value"):
        got, right, same = (getattr(x, name).dequantize() for x in (bank, exact, plain))
        size = jnp.sum(jnp.square(right))
        found[f"{name}_squared_error"] = jnp.sum(jnp.square(got - right)) / size
        found[f"{name}_difference_from_plain"] = jnp.sqrt(jnp.sum(jnp.square(got - same)) / size)
    return found
