"""Whether the parts of a cache fit together: banks, codes, settings and tables."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.sharing import is_shared
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.cache.visual_bank import VisualBank, code_bank
from vkq_jax.codes.dictionary_tensor import DictionaryTensor
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.codes.token_classes import ClassMap
from vkq_jax.messages import show
from vkq_jax.pytree import take_layer
from vkq_jax.settings.layer_groups import Cells, check_cells
from vkq_jax.slots import filled
from vkq_jax.structure import check_structure

__all__ = ["check_cache"]


def check_cache(cache: AnyCache) -> None:
    """Checks the parts of a cache that came from outside against each other.

    Each by itself is checked before (see `vkq_jax.validation`).

    Raises:
        ValueError: banks differ in layers, sequences, heads or channels; codes are not those that
            the settings make; lengths or token numbers that are out of range, or numbers that only
            some banks keep; a score map of other heads or codes.
    """
    check_structure("cache", cache)
    if isinstance(cache, KVCache):
        _check_part(cache, cache)
        return
    if cache.cross:
        _check_cross(cache)
    for part in cache.parts:
        _check_part(part, cache)
    states = cache.recurrent
    check_cells(cache.cells if states is None else (*cache.cells, Cells(states.layers)))
    _check_settings(cache)
    held = [part.text.key.shape[:3:2] for part in cache.parts]
    named = [
        _held_cells(cells, heads)
        for cells, (heads, _) in zip(cache.cells, cache.sizes, strict=True)
    ]
    if held != named:
        raise ValueError(
            f"cells: expected layers and heads of the parts, {show(held)}, got {show(named)}"
        )
    lengths = ("position", "text_length", "visual_lengths", "cache_length")
    for name in (*lengths, "keeps_indices", "text_bits"):
        first, *others = (getattr(part, name) for part in cache.text_parts)
        if not all(_same(first, other) for other in others):
            raise ValueError(f"parts: expected the same {name} in all, got different ones")


def _held_cells(cells: Cells, num_kv_heads: int) -> tuple[int, int]:
    """How many layers and heads of each a group has."""
    return len(cells.layers), num_kv_heads if cells.heads is None else len(cells.heads[0])


def _same(first: Any, other: Any) -> bool:
    pairs = [jax.tree.leaves(tree) for tree in (first, other)]
    return len(pairs[0]) == len(pairs[1]) and all(
        jnp.shape(x) == jnp.shape(y) and bool(jnp.all(x == y)) for x, y in zip(*pairs, strict=True)
    )


def _check_settings(cache: LayeredCache) -> None:
    """Checks the groups of each kind of layers against the settings of all layers."""
    kinds = [list(range(int(cache.cross), len(cache.parts)))]
    if cache.sizes_differ:
        of_sizes = itertools.groupby(kinds[0], key=cache.sizes.__getitem__)
        kinds = [list(numbers) for _, numbers in of_sizes]
    several = cache.cross or cache.recurrent is not None or len(kinds) > 1
    if cache.given is None and not several:
        return
    groups = list(zip(cache.cells, (part.quant for part in cache.parts), strict=True))
    for numbers in kinds:
        own = tuple(groups[number] for number in numbers)
        layers = [layer for cells, _ in own for layer in cells.layers]
        expected = ((own[0][0], cache.parts[0].quant),)
        if cache.given is not None:
            expected = cache.given.of_layers(layers)
        if own != expected:
            raise ValueError(
                "given: expected the settings of the parts; without it, one part for each kind of "
                "layers, all with the same settings"
            )


def _check_cross(cache: LayeredCache) -> None:
    """Checks that text lies in the first part, and pictures in the others."""
    text, *others = cache.parts
    apart = others and not text.visual and text.quant == others[0].quant
    for cross in others:
        empty = not cross.text.length.any() and cross.text.cache_length == 1
        apart = apart and empty and cross.keeps_indices
    if not apart:
        raise ValueError(
            "parts: expected text in the first and pictures in all others, which are "
            "cross-attention layers, and in the first the settings of the second"
        )
    for name in ("position", "visual_lengths"):
        first, *more = (getattr(part, name) for part in others)
        more += [text.position] if name == "position" else []
        if not all(_same(first, other) for other in more):
            raise ValueError(f"parts: expected the same {name} in all, got different ones")


def _check_part(cache: KVCache, whole: AnyCache) -> None:
    key = cache.text.key
    if key.ndim != 5 or not key.size:
        raise ValueError(f"text must have keys and values [L, B, K, S, H], got {show(key)}")
    for name in ("position", "calibration_skipped"):
        counts = getattr(cache, name)
        if counts.shape != key.shape[1:2] or (counts < 0).any():
            raise ValueError(
                f"{name} must be a number of at least 0 for each of {key.shape[1]} sequences, got "
                f"{show(counts.tolist())}"
            )
    _check_filled("text", cache.text, cache, whole, cache.text.cache_length)
    if cache.key_bias is not None:
        _check_key_bias(cache.key_bias, key.shape)
    for number, bank in enumerate(cache.visual):
        _check_positions(f"visual.{number}.position", bank, cache)
        _check_bank(f"visual.{number}", bank, cache, whole)
    if cache.score_map is not None:
        cache.score_map.check_codes(cache.quant)
        cache.score_map.check_heads(num_layers=key.shape[0], num_kv_heads=key.shape[2])


def _check_key_bias(bias: KeyBias, text_key: tuple[int, ...]) -> None:
    num_layers, _, num_kv_heads, _, head_dim = text_key
    expected, half = (num_layers, num_kv_heads, head_dim), len(bias.frequencies)
    if bias.bias.shape != expected or 2 * half > head_dim:
        raise ValueError(
            f"key_bias must be {list(expected)} with at most {head_dim // 2} frequencies, got "
            f"{show(bias.bias)} with {half}"
        )
    axes = bias.axis_of_pair
    if axes is not None and (len(axes) != half or not set(axes) <= {0, 1, 2}):
        raise ValueError(f"key_bias: expected {half} axes in 0 to 2, got {show(list(axes))}")


def _check_positions(name: str, bank: VisualBank, cache: KVCache) -> None:
    position = bank.position
    axes = () if cache.key_bias is None or cache.key_bias.axis_of_pair is None else (3,)
    if position is None:
        if cache.key_bias is not None:
            raise ValueError(f"{name}: a cache with a key bias keeps positions, got none")
    elif position.shape[0] != bank.length.shape[0] or position.shape[2:] not in ((), axes):
        raise ValueError(f"{name} must have the axes [B, V, {axes}], got {show(position)}")


def _check_filled(
    name: str,
    bank: TextBank | VisualBank,
    cache: KVCache,
    whole: AnyCache,
    capacity: int,
) -> None:
    """Checks the lengths and the token numbers of a bank of a part of the whole cache."""
    length, index, batch = bank.length, bank.index, cache.position.shape[0]
    if isinstance(bank, VisualBank) and is_shared(bank, batch):
        batch = 1
    if length.shape != (batch,) or ((length < 0) | (length > capacity)).any():
        raise ValueError(
            f"{name}.length must be in [0, {capacity}] for each of {batch} sequences, got "
            f"{show(length.tolist())}"
        )
    if (index is not None) != cache.keeps_indices:
        raise ValueError(f"{name}: either all banks keep the numbers of their tokens, or none")
    if index is None:
        return
    if index.shape != (batch, capacity):
        raise ValueError(f"{name}.index must be {[batch, capacity]}, got {show(index)}")
    late = filled(length, capacity) & (index >= whole.num_tokens[:, None])
    if (late | (index < 0)).any():
        raise ValueError(f"{name}.index must be in [0, the number of tokens)")


def _check_bank(name: str, bank: VisualBank, cache: KVCache, whole: AnyCache) -> None:
    num_layers, batch, num_kv_heads, _, head_dim = cache.text.key.shape
    batch = 1 if is_shared(bank, batch) else batch
    for leaf in jax.tree.leaves((bank.key, bank.value, bank.class_map, cache.tables)):
        if leaf.shape[:1] != (num_layers,):
            raise ValueError(f"{name}: expected parts of {num_layers} layers, got {show(leaf)}")
    layer, tables = jax.eval_shape(lambda: (bank.of_layer(0), take_layer(cache.tables, 0)))
    try:
        key = layer.check_fits((cache.position.shape[0], num_kv_heads, head_dim), tables)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    capacity = key.shape[-2]
    _check_filled(name, bank, cache, whole, capacity)

    def made(dtype: Any) -> VisualBank:
        x = jax.ShapeDtypeStruct(key.shape, dtype)
        valid = jax.ShapeDtypeStruct((batch, capacity), bool)
        return jax.eval_shape(
            lambda key, value, valid, tables: code_bank(key, value, valid, cache.quant, tables),
            *(x, x, valid, tables),
        )

    # Full precision keeps the dtype of what is coded, which nothing but the bank itself tells.
    floating = {x.dtype for x in jax.tree.leaves(layer) if jnp.issubdtype(x.dtype, jnp.floating)}
    differences = [_bank_difference(layer, made(dtype)) for dtype in floating or {key.dtype}]
    if all(differences):
        raise ValueError(f"{name}: {differences[0]}, with the settings of the cache")
    if bank.class_map is not None:
        heads = jnp.broadcast_to(bank.length[None, :, None], (num_layers, batch, num_kv_heads))
        _check_classes(name, bank.class_map, filled(heads, capacity))
    if cache.tables is not None:
        for side in ("key", "value"):
            codebook = getattr(cache.tables, side).codebook
            tensor = getattr(bank, side).plain()
            if codebook is not None and isinstance(tensor, DictionaryTensor):
                tensor.check_ids(codebook.shape[-2])


def _check_classes(name: str, class_map: ClassMap, valid: Bool[Array, "L B K V"]) -> None:
    number = class_map.classes(valid)
    for c, slots in enumerate(class_map.capacities):
        if ((number == c).sum(-1) > slots).any():
            raise ValueError(f"{name}.class_map: class {c} has more tokens than its {slots} slots")
    if (valid & (number >= len(class_map.capacities))).any():
        raise ValueError(f"{name}.class_map: a token belongs to none of the classes")


def _bank_difference(bank: VisualBank, made: VisualBank) -> str | None:
    """The first part in which a layer's bank differs from one that the settings make, or None."""
    if (bank.class_map is None) != (made.class_map is None):
        return f"expected class_map {show(made.class_map)}, got {show(bank.class_map)}"
    for side in ("key", "value", "class_map"):
        if (difference := _difference(getattr(bank, side), getattr(made, side))) is not None:
            return f"{side}: {difference}"
    return None


def _difference(own: Any, made: Any) -> str | None:
    """The first field in which two tensors or maps differ.

    A tensor of another class, such as one in the layout of a kernel, has the same decoding and
    agrees in the settings that both have.
    """
    if made is None:
        return None
    parts, expected = _parts(own), _parts(made)
    if type(own) is not type(made):
        static = {f.name for f in dataclasses.fields(made) if f.metadata.get("static")}
        common = parts.keys() & static
        parts = {name: parts[name] for name in common} | _parts(_decoded(own))
        expected = {name: expected[name] for name in common} | _parts(_decoded(made))
    if parts.keys() != expected.keys():
        return f"expected a {type(made).__name__}, got a {type(own).__name__}"
    for name, part in expected.items():
        if parts[name] != part:
            return f"expected {name} {_text(part)}, got {_text(parts[name])}"
    return None


def _decoded(tensor: QuantizedTensor) -> QuantizedTensor:
    try:
        return jax.eval_shape(lambda t: t.decoding(), tensor)
    except NotImplementedError:  # full precision, dictionary codes and mixed codes have none
        return jax.eval_shape(lambda t: t.plain(), tensor)


def _parts(tree: Any) -> dict[str, Any]:
    """The leaves and the structure of each field; arrays as text, by their dtype and shape."""

    def described(field):
        parts, structure = jax.tree.flatten(getattr(tree, field.name))
        return [show(x) if hasattr(x, "shape") else x for x in parts], structure

    return {field.name: described(field) for field in dataclasses.fields(tree)}


def _text(part: Any) -> str:
    leaves, _ = part
    return ", ".join(map(str, leaves)) or "None"
