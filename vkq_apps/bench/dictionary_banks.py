"""Random banks of dictionary codes in the kernel's layout."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import TiledDictionary
from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import Side
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache import VisualBank
from vkq_jax.code_tables import CodeTables, SideTables
from vkq_jax.config import KVQuantConfig
from vkq_jax.dictionary_codes import DictionaryCodes
from vkq_jax.quantized import Quantizer
from vkq_jax.token_classes import assign_classes

__all__ = ["bits_of_tokens", "random_bank", "random_tables"]


def bits_of_tokens(codes: Quantizer, head_dim: int) -> float:
    """Bits of a token of one side, on average: planes, its scale and its centroid's number."""
    assert isinstance(codes, DictionaryCodes)
    has_scale = codes.scale is not None
    virtual = [codes.virtual_channels(c, head_dim) for c in range(len(codes.classes))]
    per_token = [8 * (n > 0 and has_scale) + n for n in virtual]
    shares = [c.share for c in codes.classes]
    return codes.id_bits + sum(s * bits for s, bits in zip(shares, per_token, strict=True))


def random_bank(
    quant: KVQuantConfig,
    lead: tuple[int, int, int],
    positions: int,
    head_dim: int,
    length: Int32[Array, "B"],
    key: jax.Array,
) -> VisualBank:
    """A bank of layers [L, B, K], its words random, its tokens in classes by chance."""
    keys = iter(jax.random.split(key, 64))
    valid = jnp.arange(positions, dtype=jnp.int32) < length[:, None, None]
    valid: Bool[Array, "L B K V"] = jnp.broadcast_to(valid, (*lead, positions))
    energy = jax.random.uniform(next(keys), valid.shape)
    assert isinstance(quant.key, DictionaryCodes)
    class_map = assign_classes(energy, valid, quant.key.classes)
    number = class_map.classes()
    taken = jnp.stack(
        [(number == c).sum(-1, dtype=jnp.int32) for c in range(len(class_map.capacities))], axis=-1
    )

    def scales(slots: int) -> Array:
        sizes = jnp.exp(0.3 * jax.random.normal(next(keys), (*lead, slots)))
        code = jnp.clip(jnp.round(8 * jnp.log2(sizes)) + 128, 1, 255)
        return layouts.tile_scales(code.astype(jnp.uint8))

    def numbers(slots: int, codes: DictionaryCodes) -> Array | None:
        count = codes.codebook or codes.centres
        if count < 2:
            return None
        ids = jax.random.randint(next(keys), (*lead, slots), 0, count)
        if codes.codebook:
            return layouts.tile_scales(ids.astype(jnp.uint8))
        return layouts.tile_ids(ids, codes.id_bits)

    def tensor(side: Side, codes: Quantizer) -> TiledDictionary:
        assert isinstance(codes, DictionaryCodes)
        bits = tuple(int(c.planes) for c in codes.classes)
        count = layouts.key_words if side == "key" else layouts.value_words
        of_classes: list[tuple[Any, Any, Any]] = []
        for planes, slots in zip(bits, class_map.capacities, strict=True):
            words = (*lead, planes * count(slots, head_dim))
            of_classes.append(
                (
                    jax.random.bits(next(keys), words, jnp.uint32),
                    scales(slots) if planes else None,
                    numbers(slots, codes),
                )
            )
        packed, token_scale, centre_id = zip(*of_classes, strict=True)
        centre = 0.3 * jax.random.normal(next(keys), (*lead, codes.centres, head_dim))
        return TiledDictionary(
            packed,
            token_scale,
            centre.astype(jnp.bfloat16),
            centre_id if codes.id_bits else None,
            taken,
            side=side,
            bits=bits,
            capacities=class_map.capacities,
            head_dim=head_dim,
            num_positions=positions,
            id_bits=codes.id_bits,
            codebook=codes.codebook > 0,
        )

    key_tensor, value_tensor = tensor("key", quant.key), tensor("value", quant.value)
    return VisualBank(key_tensor, value_tensor, length, class_map=class_map)


def random_tables(
    quant: KVQuantConfig, kv_heads: int, head_dim: int, key: jax.Array
) -> CodeTables | None:
    """Codebooks of one layer; None where the codes need none."""

    sides = []
    for number, codes in enumerate((quant.key, quant.value)):
        assert isinstance(codes, DictionaryCodes)
        book = None
        if codes.codebook:
            own, shape = jax.random.fold_in(key, number), (kv_heads, codes.codebook, head_dim)
            book = 0.3 * jax.random.normal(own, shape, jnp.bfloat16)
        sides.append(SideTables(codebook=book))
    return CodeTables(*sides) if any(side.codebook is not None for side in sides) else None
