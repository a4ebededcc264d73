"""An empty cache, from sizes and the name of a preset."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.recurrent import RecurrentState
from vkq_jax.cache.text_bank import TextBank, TextBits, check_text_bits
from vkq_jax.messages import show
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.layer_groups import Cells, LayerGroups, Quant, groups_of
from vkq_jax.settings.layer_settings import MOST_NUMBERS, AnyQuant, PerLayer
from vkq_jax.settings.presets import resolve
from vkq_jax.validation import check_dtype, check_fields, check_size, whole_number

__all__ = ["LayerSizes", "empty_cache"]


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """Layers of a model whose keys and values have sizes of their own.

    Attributes:
        layers: their numbers.
        num_kv_heads, head_dim: K and H of each.
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
    other_layers: LayerSizes | None = None,
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
            batch.
        other_layers: layers whose heads have another number or size than num_kv_heads and head_dim
            say. Only one of cross_layers, recurrent and other_layers is taken.

    Raises:
        ValueError: a size below 1, an unknown preset, other bits of text, or layers, or settings of
            layers or heads, that are not there, or of layers that hold no visual tokens.
        NotImplementedError: settings of heads where layers differ in their number, or more than
            two kinds of layers.
    """
    sizes = _Sizes(
        num_layers, batch, num_kv_heads, head_dim, cache_length, dtype, keep_indices, text_bits
    )
    if isinstance(quant, PerLayer):
        without = _without_visual_tokens(num_layers, cross_layers, recurrent)
        quant = quant.settle(num_layers, num_kv_heads, without=without)
    elif isinstance(quant, LayerGroups):
        quant = quant.settle(num_layers, num_kv_heads)
    settled = quant if isinstance(quant, LayerGroups) else resolve(quant)
    crossed = not isinstance(cross_layers, list | tuple) or bool(cross_layers)
    kinds = {
        "cross_layers": crossed,
        "recurrent": recurrent is not None,
        "other_layers": other_layers is not None,
    }
    asked = [name for name, is_given in kinds.items() if is_given]
    if len(asked) > 1:
        raise NotImplementedError(f"{' and '.join(asked)}: expected one of them, got {len(asked)}")
    if other_layers is not None:
        return _with_other_layers(sizes, settled, other_layers)
    if recurrent is not None:
        others = _beside_states(recurrent, num_layers, batch)
        parts, cells = sizes.parts(others, settled)
        return LayeredCache(parts, cells, recurrent=recurrent, given=_groups_in(settled))
    if crossed:
        return _with_cross_layers(sizes, settled, cross_layers)
    every = Cells(tuple(range(num_layers)))
    if isinstance(settled, LayerGroups):
        return LayeredCache(*sizes.parts(every, settled))
    return sizes.part(every, settled)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Sizes of a cache's layers, and how its text is kept; attributes: see `empty_cache`."""

    num_layers: int
    batch: int
    num_kv_heads: int
    head_dim: int
    cache_length: int
    dtype: DTypeLike
    keep_indices: bool
    text_bits: TextBits

    def __post_init__(self):
        """Checks the sizes."""
        # Settings name layers and heads by numbers of at most MOST_NUMBERS.
        for name in ("num_layers", "num_kv_heads"):
            check_size(name, getattr(self, name), MOST_NUMBERS)
        for name in ("batch", "cache_length", "head_dim"):
            check_size(name, getattr(self, name))
        check_dtype("dtype", self.dtype)
        if not isinstance(self.keep_indices, bool):
            raise ValueError(f"keep_indices: expected True or False, got {show(self.keep_indices)}")
        check_text_bits(self.text_bits)

    def parts(self, kind: Cells, quant: Quant) -> tuple[tuple[KVCache, ...], tuple[Cells, ...]]:
        """Caches of the groups of equal settings among layers of one kind, and these groups."""
        groups = groups_of(quant, kind.layers)
        return tuple(self.part(*group) for group in groups), tuple(cells for cells, _ in groups)

    def part(self, cells: Cells, quant: KVQuantConfig) -> KVCache:
        """The cache of a group of layers and heads."""
        num_kv_heads = self.num_kv_heads if cells.heads is None else len(cells.heads[0])
        shape = (len(cells.layers), self.batch, num_kv_heads, self.cache_length, self.head_dim)
        text = TextBank.empty(
            shape, self.dtype, bits=self.text_bits, keep_indices=self.keep_indices
        )
        none = jnp.zeros(self.batch, jnp.int32)
        return KVCache((), text, position=none, calibration_skipped=none, quant=quant)


def _groups_in(quant: Quant) -> LayerGroups | None:
    return quant if isinstance(quant, LayerGroups) else None


def _with_other_layers(sizes: _Sizes, quant: Quant, other_layers: LayerSizes) -> LayeredCache:
    """The cache of a model with two sizes of heads."""
    if not isinstance(other_layers, LayerSizes):
        raise ValueError(f"other_layers: expected LayerSizes, got {show(other_layers)}")
    others, own = _two_kinds(sizes.num_layers, other_layers.layers, "other_layers.layers")
    given = _groups_in(quant)
    if given is not None and given.num_kv_heads and other_layers.num_kv_heads != sizes.num_kv_heads:
        raise NotImplementedError(
            f"quant: expected settings of whole layers for a model whose layers have "
            f"{sizes.num_kv_heads} or {other_layers.num_kv_heads} KV heads, got some of heads"
        )
    own_sizes = dataclasses.replace(
        sizes, num_kv_heads=other_layers.num_kv_heads, head_dim=other_layers.head_dim
    )
    first, second = sizes.parts(others, quant), own_sizes.parts(own, quant)
    return LayeredCache(first[0] + second[0], first[1] + second[1], given=given)


def _with_cross_layers(sizes: _Sizes, quant: Quant, cross_layers: Sequence[int]) -> LayeredCache:
    """The cache of a model with cross-attention layers, which hold no text."""
    text, cross = _two_kinds(sizes.num_layers, cross_layers, "cross_layers")
    # A token sees pictures by their numbers.
    own_sizes = dataclasses.replace(sizes, cache_length=1, keep_indices=True)
    parts, cells = own_sizes.parts(cross, quant)
    first = sizes.part(text, parts[0].quant)
    return LayeredCache((first, *parts), (text, *cells), cross=True, given=_groups_in(quant))


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


def _two_kinds(num_layers: int, layers: Sequence[int], name: str) -> tuple[Cells, Cells]:
    """The layers that hold text, and the others."""
    numbers = [whole_number(n) for n in layers] if isinstance(layers, list | tuple) else [None]
    if None in numbers:
        raise ValueError(f"{name}: expected numbers of layers, got {show(layers)}")
    cross = tuple(sorted({n for n in numbers if n is not None}))
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
            f"all, got {show(list(layers))}"
        )
    return Cells(others), Cells(cross)


def _beside_states(recurrent: RecurrentState, num_layers: int, batch: int) -> Cells:
    """The layers that have keys, beside those with a state; checks the states."""
    if not isinstance(recurrent, RecurrentState):
        raise ValueError(f"recurrent: expected a RecurrentState, got {show(recurrent)}")
    check_fields(recurrent)
    others, states = _two_kinds(num_layers, recurrent.layers, "recurrent.layers")
    if any(x.shape[:2] != (len(states.layers), batch) for x in recurrent.values):
        raise ValueError(
            f"recurrent: expected arrays [{len(states.layers)} layers, {batch} sequences, ...],"
            f" got {show([list(x.shape) for x in recurrent.values])}"
        )
    return others
