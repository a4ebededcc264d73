"""Random banks of dictionary codes in the kernel's layout."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import TiledDictionary
from pallas_kernels.layout import layouts
from pallas_kernels.layout.layouts import Side
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache import VisualBank
from vkq_jax.dictionary_codes import DictionaryCodes
from vkq_jax.token_classes import assign_classes

__all__ = ["bits_of_tokens", "random_bank"]


def bits_of_tokens(codes: DictionaryCodes, head_dim: int) -> float:
    """Bits of a token of one side, on average: planes, its scale and its centroid's number."""
    per_token = [8 * (c.planes > 0) + c.planes * head_dim for c in codes.classes]
    shares = [c.share for c in codes.classes]
    return codes.id_bits + sum(s * bits for s, bits in zip(shares, per_token, strict=True))


def random_bank(
    codes: DictionaryCodes,
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
    class_map = assign_classes(energy, valid, codes.classes)
    number = class_map.classes()
    taken = jnp.stack(
        [(number == c).sum(-1, dtype=jnp.int32) for c in range(len(codes.classes))], axis=-1
    )
    bits = tuple(int(c.planes) for c in codes.classes)

    def scales(slots: int) -> Array:
        sizes = jnp.exp(0.3 * jax.random.normal(next(keys), (*lead, slots)))
        code = jnp.clip(jnp.round(8 * jnp.log2(sizes)) + 128, 1, 255)
        return layouts.tile_scales(code.astype(jnp.uint8))

    def tensor(side: Side) -> TiledDictionary:
        count = layouts.key_words if side == "key" else layouts.value_words
        of_classes: list[tuple[Any, Any, Any]] = []
        for planes, slots in zip(bits, class_map.capacities, strict=True):
            words = (*lead, planes * count(slots, head_dim))
            ids = jax.random.randint(next(keys), (*lead, slots), 0, codes.centres)
            of_classes.append(
                (
                    jax.random.bits(next(keys), words, jnp.uint32),
                    scales(slots) if planes else None,
                    layouts.tile_ids(ids, codes.id_bits) if codes.id_bits else None,
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
        )

    return VisualBank(tensor("key"), tensor("value"), length, class_map=class_map)
