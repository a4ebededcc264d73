"""Summaries of caches, tensors and byte counts, see `vkq_jax.display`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vkq_jax.byte_units import human_bytes
from vkq_jax.cache.accounting import CacheBytes, cache_nbytes, text_nbytes
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.layered import LayeredCache
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.display import is_array, summarize
from vkq_jax.pytree import nbytes
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.layer_groups import Cells
from vkq_jax.settings.presets import calibrated_presets, presets

__all__ = ["cells_name", "codes_name"]


def codes_name(quant: KVQuantConfig) -> str:
    """The name of the preset that the settings are, calibrated or not, or their codes' types."""
    for name, preset in presets.items():
        if preset == quant:
            return name
        if quant in calibrated_presets.get(name, ()):
            return f"{name}, calibrated"
    key, value = type(quant.key).__name__, type(quant.value).__name__
    return key if quant.key == quant.value else f"keys {key}, values {value}"


@summarize.register
def _(cache: KVCache) -> dict[str, str] | None:
    if not _is_whole(cache) or cache.text.key.ndim != 5:  # stacked by vmap, or no cache of arrays
        return None
    rows = {"codes": codes_name(cache.quant), "layers": str(cache.num_layers)}
    rows |= _banks(cache, cache.text.key.shape)
    if cache.visual:
        rows["visual bytes"] = _saved(cache_nbytes(cache))
    extras = {"tables": cache.tables, "score map": cache.score_map, "key bias": cache.key_bias}
    if found := [name for name, part in extras.items() if part is not None]:
        rows["of the model"] = ", ".join(found)
    return rows


@summarize.register
def _(layer: LayerCache) -> dict[str, str] | None:
    if not _is_whole(layer) or layer.text.key.ndim != 4:
        return None
    return {"codes": codes_name(layer.quant)} | _banks(layer, (1, *layer.text.key.shape))


@summarize.register
def _(cache: LayeredCache) -> dict[str, str] | None:
    first, *others = (summarize(part) for part in cache.parts)
    if first is None:
        return None
    size = cache_nbytes(cache)
    rows = {"layers": str(cache.num_layers), "sequences": first["sequences"]}
    sizes = [(cache.num_kv_heads, cache.parts[0].text.key.shape[-1])]
    if cache.sizes_differ:
        sizes = [part.text.key.shape[2::2] for part in cache.parts]
    rows["KV heads"] = ", ".join(f"{count} of {channels} channels" for count, channels in sizes)
    for cells, part in zip(cache.cells, (first, *others), strict=True):
        found = part or {}
        banks = [f"{name}: {x}" for name, x in found.items() if name.startswith("visual tokens")]
        rows[cells_name(cells)] = ", ".join([found.get("codes", ""), *banks])
    if cache.recurrent is not None:
        states = f"recurrent state, {human_bytes(size.recurrent)}"
        rows[cells_name(Cells(cache.recurrent.layers))] = states
    return rows | {"visual bytes": _saved(size), "text bytes": human_bytes(size.text)}


@summarize.register
def _(tensor: QuantizedTensor) -> dict[str, str] | None:
    if not _is_whole(tensor):
        return None
    size, elements = nbytes(tensor), tensor.num_elements()
    return {"elements": str(elements), "bytes": f"{human_bytes(size)}{_bits(size, elements)}"}


@summarize.register
def _(size: CacheBytes) -> dict[str, str] | None:
    return {
        "visual codes": human_bytes(size.visual_codes),
        "visual tables": human_bytes(size.visual_tables),
        "visual": _saved(size),
        "text": human_bytes(size.text),
        "total": human_bytes(size.total),
    }


def _saved(size: CacheBytes) -> str:
    full = human_bytes(size.visual_full_precision)
    return f"{human_bytes(size.visual)} instead of {full}, {size.visual_reduction:.1%} saved"


def _banks(cache: KVCache | LayerCache, shape: tuple[int, ...]) -> dict[str, str]:
    """Sizes, visual banks and text of a cache, or of one of its layers; `shape` of all text."""
    _, batch, heads, capacity, head_dim = shape
    rows = {"sequences": str(batch), "KV heads": f"{heads} of {head_dim} channels"}
    for number, bank in enumerate(cache.visual):
        name = "visual tokens" if len(cache.visual) == 1 else f"visual tokens {number}"
        rows[name] = _bank(bank, shape)
    text = cache.text
    stored = text.dtype if text.bits is None else f"{text.bits} bits"
    size = human_bytes(text_nbytes(text))
    room = f"room for {capacity} a sequence in {stored}, {size}"
    return rows | {"text": f"{_lengths(text.length)}{room}"}


def _bank(bank: VisualBank, text: tuple[int, ...]) -> str:
    layers, batch, heads, _, head_dim = text
    elements = sum(x.num_elements() for x in (bank.key, bank.value))
    size = nbytes((bank.key, bank.value, bank.class_map))
    sequences = bank.length.shape[0]
    positions = bank.key.num_elements() // (layers * sequences * heads * head_dim)
    owners = "a sequence" if sequences == batch else f"shared by {batch} sequences"
    return f"{_lengths(bank.length)}room for {positions} {owners}{_bits(size, elements)}"


def _bits(size: int, elements: int) -> str:
    return f", {8 * size / elements:.2f} bits an element" if elements else ""


def _lengths(length: Any) -> str:
    """How many tokens the sequences hold, where that is known."""
    known = isinstance(length, jax.Array | np.ndarray) and not isinstance(length, Tracer)
    if not known or not length.size:
        return ""
    if isinstance(length, jax.Array) and length.is_deleted():
        return "deleted, "
    low, high = int(jnp.min(length)), int(jnp.max(length))
    return f"{low if low == high else f'{low} to {high}'}, "


def cells_name(cells: Cells) -> str:
    """Layers and heads of a group: 'layers 0, 2-4', 'layers 0-3, heads 1', or heads by layer."""
    name = f"layers {_numbers(cells.layers)}"
    if cells.heads is None:
        return name
    if len(set(cells.heads)) == 1:
        return f"{name}, heads {_numbers(cells.heads[0])}"
    shown = list(zip(cells.layers, cells.heads, strict=True))[:4]
    listed = "; ".join(f"{layer}: {_numbers(heads)}" for layer, heads in shown)
    return f"{name}, heads {listed}{'; ...' if len(cells.layers) > len(shown) else ''}"


def _numbers(layers: tuple[int, ...]) -> str:
    """Runs of numbers: '0, 2-4'."""
    runs: list[list[int]] = []
    for number in layers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _is_whole(tree: Any) -> bool:
    """Whether all leaves are arrays: JAX puts other things into pytrees, too."""
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(map(is_array, leaves))
