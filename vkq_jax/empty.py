"""An empty cache, from sizes and the name of a preset."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from vkq_jax.cache import KVCache
from vkq_jax.config import KVQuantConfig
from vkq_jax.layer_settings import (
    MOST_NUMBERS,
    AnyQuant,
    Cells,
    LayerGroups,
    PerLayer,
    Quant,
    groups_of,
)
from vkq_jax.layered import AnyCache, LayeredCache
from vkq_jax.presets import resolve
from vkq_jax.recurrent import RecurrentState
from vkq_jax.text_bank import TextBits
from vkq_jax.validation import check_fields, check_size, shown

__all__ = ["LayerSizes", "empty_cache"]


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """Layers of a model whose keys and values have sizes of their own.

    Attributes:
        layers: their numbers. num_kv_heads, head_dim: K and H of each.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int


def empty_cache(
    *,
    num_layers: int,
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    cache_length: int,
    quant: AnyQuant = "vkq-1bit",
    dtype: DTypeLike = jnp.bfloat16,
    keep_indices: bool = False,
    cross_layers: Sequence[int] = (),
    recurrent: RecurrentState | None = None,
    unlike: LayerSizes | None = None,
    text_bits: TextBits = None,
) -> AnyCache:
    """A cache without tokens, for `begin_prefill`.

    Args:
        num_layers, num_kv_heads, head_dim: L, K and H of the model.
        batch: sequences.
        cache_length: text tokens that a sequence can hold, prompts and answers of all turns;
            `grow` makes room for more. Visual tokens do not count.
        quant: how visual tokens are coded: the name of a preset, settings, or those of `per_layer`
            and `per_head`.
        dtype: of text keys and values, and of visual ones that are not coded.
        keep_indices: keep the number of each token, 4 bytes, which a sliding window needs.
        text_bits: 8 keeps text keys and values as integers with a scale for each token and head;
            None in `dtype`.
        cross_layers: numbers of the layers that are cross-attention to pictures: those hold all
            visual tokens and no text, the others the reverse. See `PromptPictures`.
        recurrent: first states of the layers that keep one instead of keys and values, of the same
            batch. Not together with cross_layers.
        unlike: layers with heads of another number or size than num_kv_heads and head_dim say. Not
            together with cross_layers or recurrent.

    Raises:
        ValueError: a size below 1, an unknown preset, other bits of text, or layers, or settings of
            layers or heads, that are not there, or of layers that hold no visual tokens.
        NotImplementedError: settings of heads where layers differ in their number, or more than
            two kinds of layers.
    """
    sizes: dict[str, Any] = {
        "num_layers": num_layers,
        "batch": batch,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "cache_length": cache_length,
    }
    for name in ("num_layers", "num_kv_heads"):  # which are counted before a cache is made
        check_size(name, sizes[name], MOST_NUMBERS)
    options: dict[str, Any] = {
        "dtype": dtype,
        "keep_indices": keep_indices,
        "text_bits": text_bits,
    }
    if isinstance(quant, PerLayer):
        without = _without_visual_tokens(num_layers, cross_layers, recurrent)
        quant = quant.settle(num_layers, num_kv_heads, without=without)
    elif isinstance(quant, LayerGroups):
        quant = quant.settle(num_layers, num_kv_heads)
    settled = quant if isinstance(quant, LayerGroups) else resolve(quant)
    given = settled if isinstance(settled, LayerGroups) else None
    if unlike is not None:
        if not isinstance(unlike, LayerSizes):
            raise ValueError(f"unlike: expected LayerSizes, got {shown(unlike)}")
        if cross_layers or recurrent is not None:
            raise NotImplementedError("unlike: expected no cross_layers and no recurrent with it")
        others, own = _two_kinds(num_layers, unlike.layers, "unlike.layers")
        if given is not None and given.num_kv_heads and unlike.num_kv_heads != num_kv_heads:
            raise NotImplementedError(
                f"quant: expected settings of whole layers for a model whose layers have "
                f"{num_kv_heads} or {unlike.num_kv_heads} KV heads, got some of heads"
            )
        own_sizes = {"num_kv_heads": unlike.num_kv_heads, "head_dim": unlike.head_dim}
        first = _parts(others, settled, sizes, options)
        second = _parts(own, settled, sizes | own_sizes, options)
        return LayeredCache(first[0] + second[0], first[1] + second[1], given=given)
    if recurrent is not None:
        others = _beside_states(recurrent, num_layers, batch)
        if cross_layers:
            raise NotImplementedError("cross_layers and recurrent: expected one of them, got both")
        return LayeredCache(
            *_parts(others, settled, sizes, options), recurrent=recurrent, given=given
        )
    if not isinstance(cross_layers, list | tuple) or cross_layers:
        text, cross = _two_kinds(num_layers, cross_layers, "cross_layers")
        # A token sees pictures by their numbers.
        parts, cells = _parts(
            cross, settled, sizes | {"cache_length": 1}, options | {"keep_indices": True}
        )
        first = _part(text, parts[0].quant, sizes, options)
        return LayeredCache((first, *parts), (text, *cells), cross=True, given=given)
    if not isinstance(settled, LayerGroups):
        return KVCache.init(**sizes, quant=settled, **options)
    return LayeredCache(*_parts(Cells(tuple(range(num_layers))), settled, sizes, options))


def _without_visual_tokens(
    num_layers: int, cross_layers: Sequence[int], recurrent: RecurrentState | None
) -> tuple[int, ...]:
    """Layers that hold none: those beside cross-attention layers, and those with a state."""
    if isinstance(recurrent, RecurrentState):
        check_fields(recurrent)
        return _two_kinds(num_layers, recurrent.layers, "recurrent.layers")[1].layers
    if not isinstance(cross_layers, list | tuple) or cross_layers:
        return _two_kinds(num_layers, cross_layers, "cross_layers")[0].layers
    return ()


def _parts(
    kind: Cells, quant: Quant, sizes: dict[str, Any], options: dict[str, Any]
) -> tuple[tuple[KVCache, ...], tuple[Cells, ...]]:
    """Caches of the groups of equal settings among layers of one kind, and these groups."""
    groups = groups_of(quant, kind.layers)
    parts = tuple(_part(cells, own, sizes, options) for cells, own in groups)
    return parts, tuple(cells for cells, _ in groups)


def _part(
    cells: Cells, quant: KVQuantConfig, sizes: dict[str, Any], options: dict[str, Any]
) -> KVCache:
    """The cache of a group of layers and heads."""
    own = sizes | {"num_layers": len(cells.layers)}
    if cells.heads is not None:
        own["num_kv_heads"] = len(cells.heads[0])
    return KVCache.init(**own, quant=quant, **options)


def _two_kinds(num_layers: int, layers: Sequence[int], name: str) -> tuple[Cells, Cells]:
    """The layers that hold text, and the others."""
    if not isinstance(layers, list | tuple) or not all(type(n) is int for n in layers):
        raise ValueError(f"{name}: expected numbers of layers, got {shown(layers)}")
    cross = tuple(sorted(set(layers)))
    others = tuple(n for n in range(num_layers) if n not in cross)
    if (
        not cross
        or len(cross) != len(layers)
        or cross[0] < 0
        or cross[-1] >= num_layers
        or not others
    ):
        raise ValueError(
            f"{name}: expected some of the layers in [0, {num_layers}), each once, and not "
            f"all, got {shown(list(layers))}"
        )
    return Cells(others), Cells(cross)


def _beside_states(recurrent: RecurrentState, num_layers: int, batch: int) -> Cells:
    """The layers that have keys, beside those with a state; checks the states."""
    if not isinstance(recurrent, RecurrentState):
        raise ValueError(f"recurrent: expected a RecurrentState, got {shown(recurrent)}")
    check_fields(recurrent)
    others, states = _two_kinds(num_layers, recurrent.layers, "recurrent.layers")
    if any(x.shape[:2] != (len(states.layers), batch) for x in recurrent.values):
        raise ValueError(
            f"recurrent: expected arrays [{len(states.layers)} layers, {batch} sequences, ...],"
            f" got {shown([list(x.shape) for x in recurrent.values])}"
        )
    return others
