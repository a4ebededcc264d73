"""The kernel's layout of packed words: blocks of 256 positions, one 16-byte load a lane.

Codes of one bit, head_dim H of 64, 128 or 256. With any other H up to 256, channels of zeros are
stored behind the others (`stored_head_dim`): 80 and 96 take the words of 128.

A **code plane** is one bit of the codes of 64 or 128 channels; all of the below is about one.
256 channels are two, codes of several bits (`TiledLevels`) as many for each bit: the words of one
plane of a head after those of another, the halves of the channels within the bits.

The words of a plane are a row of blocks; the last block may be cut short, in steps of `QUARTER` =
64 positions (keys) or two of them (values):

    words [*lead, n]:  | block 0 | block 1 | ... | whole quarters of the rest |

A block is H / 16 rows of 32 lanes of 4 words; lane = 4 g + t, as in the tensor core's fragments
(g in 0..7, t in 0..3):

    row 0  | lane 0: 4 words | lane 1: 4 words | ... | lane 31: 4 words |   512 bytes
    row 1  | ...                                                        |

**Keys** keep 32 consecutive channels of one position in a word, as `vkq_jax.bits.packing` does, so
that a row of the tensor core's left operand is a position (H = 128) or a pair of them (H = 64):

    H = 128   row 2k + c, word 2e + r   position 64k + 32r + 8 (2c + e) + g,   channels 32t...
    H = 64    row k, word 2c + r        position 64k + 32r + 8 (2c + t//2) + g, channels 32 (t%2)...

(k in 0..3; c, e, r in 0..1.) Lane 4 g + quarter then ends up with the score of position
32 (2k + r) + 8 * quarter + g, quarter = 2c + e or 2c + t // 2. A block cut short keeps its first
rows.

**Values** hold 32 consecutive positions of one channel in a word, so that a row of the left operand
is a channel and the sum over positions runs inside the instruction:

    row m, word 2h + r          positions 128h + 32t..., channel 16m + 8r + g

In a block of at most 128 positions only h = 0 exists: rows of 256 bytes, two words a lane.

**Scales per position** lie in the order in which lanes need them: lane 4g + t takes positions
32i + 8t + g, i in 0..7, as eight consecutive bytes (8-bit scales) or eight bfloat16; the last block
is always whole:

    words [*lead, blocks, 32, 2 or 4]

**Centroid numbers** of 1 or 2 bits have a word for each bit: word g, bit p is that of position
8p + g, p in 0..31; the last block is always whole:

    words [*lead, blocks, 8, 1 or 2]
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Int32, Shaped, UInt32
from vkq_jax.bits import packing

__all__ = [
    "BLOCK",
    "HEAD_DIMS",
    "QUARTER",
    "STORED_HEAD_DIMS",
    "Plane",
    "Side",
    "head_dim_reason",
    "key_words",
    "num_blocks",
    "pad_channels",
    "plane_dim",
    "split_blocks",
    "stored_head_dim",
    "tile_ids",
    "tile_keys",
    "tile_scales",
    "tile_values",
    "untile_ids",
    "untile_keys",
    "untile_scales",
    "untile_values",
    "value_words",
]

Side = Literal["key", "value"]
BLOCK = 256
QUARTER = 64
HEAD_DIMS = (64, 128)  # of one plane
STORED_HEAD_DIMS = (*HEAD_DIMS, 2 * HEAD_DIMS[-1])

# Axes of a block's key words, [position..., channel word...] -> [row, lane, word], by head_dim.
# Positions split as (k, r, c, e, g); a word's number among those of a position is t or t % 2.
_KEY_AXES = {
    # (k, r, c, e, g, t) -> row (k, c), lane (g, t), word (e, r)
    128: ((4, 2, 2, 2, 8, 4), (0, 2, 4, 5, 3, 1)),
    # (k, r, c, e, g, t % 2), e being t // 2 -> row k, lane (g, t), word (c, r)
    64: ((4, 2, 2, 2, 8, 2), (0, 4, 3, 5, 2, 1)),
}


class Plane(NamedTuple):
    """A code plane, see above: its number among those of a head, its bit and its channels."""

    number: int
    bit: int
    half: int  # of the channels; of up to 128 there is one only


def stored_head_dim(head_dim: int) -> int:
    """H with the channels of zeros that the layout stores behind the others."""
    return min(stored for stored in STORED_HEAD_DIMS if stored >= head_dim)


def plane_dim(head_dim: int) -> int:
    """Channels of a plane, those included that are only stored."""
    return min(stored_head_dim(head_dim), HEAD_DIMS[-1])


def head_dim_reason(head_dim: int) -> str | None:
    """Why the layout has no place for so many channels; None if it has."""
    greatest = STORED_HEAD_DIMS[-1]
    return f"head_dim {head_dim} is above {greatest}" if head_dim > greatest else None


def pad_channels(x: Shaped[Array, "*lead H"]) -> Shaped[Array, "*lead S"]:
    """Queries or tables with zeros for the channels that are only stored."""
    return _pad_last(x, stored_head_dim(x.shape[-1]))


def num_blocks(num_positions: int) -> int:
    """Blocks that hold `num_positions`, the one cut short included."""
    return -(-num_positions // BLOCK)


def split_blocks(num_positions: int) -> tuple[int, int]:
    """Whole blocks, and quarters (0 to 3) of the block that is cut short."""
    return divmod(-(-num_positions // QUARTER), BLOCK // QUARTER)


def key_words(num_positions: int, head_dim: int) -> int:
    """Words that hold the keys of one head."""
    blocks, quarters = split_blocks(num_positions)
    return (BLOCK * blocks + QUARTER * quarters) * stored_head_dim(head_dim) // 32


def value_words(num_positions: int, head_dim: int) -> int:
    """Words that hold the values of one head."""
    blocks, quarters = split_blocks(num_positions)
    return (BLOCK * blocks + BLOCK // 2 * -(-quarters // 2)) * stored_head_dim(head_dim) // 32


def tile_keys(packed: UInt32[Array, "*lead V W"]) -> UInt32[Array, "*lead n"]:
    """Key words from the order of `bits.packing`; missing positions and channels are zero."""
    packed = _by_plane(packed)
    *lead, num_positions, words = packed.shape
    sizes, order = _KEY_AXES[32 * words]
    blocks = _in_blocks(packed, axis=-2)
    axes = _permute(blocks.reshape(*blocks.shape[:-2], *sizes), order)
    tiled = axes.reshape(*lead, -1)[..., : key_words(num_positions, 32 * words)]
    return tiled.reshape(*lead[:-1], -1)


def untile_keys(
    tiled: UInt32[Array, "*lead n"], num_positions: int, head_dim: int
) -> UInt32[Array, "*lead V W"]:
    """The inverse of `tile_keys`."""
    tiled, dim = _split_planes(tiled, head_dim)
    sizes, order = _KEY_AXES[dim]
    blocks = num_blocks(num_positions)
    whole = _pad_last(tiled, blocks * BLOCK * dim // 32)
    axes = whole.reshape(*tiled.shape[:-1], blocks, *(sizes[axis] for axis in order))
    packed = _permute(axes, _inverse(order))
    packed = packed.reshape(*tiled.shape[:-1], blocks * BLOCK, dim // 32)
    return _join_planes(packed, num_positions, head_dim)


def tile_values(packed: UInt32[Array, "*lead V W"]) -> UInt32[Array, "*lead n"]:
    """Value words from the order of `bits.packing`; missing positions and channels are zero."""
    packed = _by_plane(packed)
    *lead, num_positions, words = packed.shape
    codes = _in_blocks(packing.unpack(packed, 1, 32 * words).astype(bool), axis=-2)
    blocks = codes.shape[len(lead)]
    # A word takes 32 positions of a channel: [(h, t), (m, r, g)] -> row m, lane (g, t), word (h, r)
    by_channel = codes.reshape(*lead, blocks, 8, 32, 32 * words).swapaxes(-1, -2)
    axes = packing.pack(by_channel, 1).reshape(*lead, blocks, 2, 4, 2 * words, 2, 8)
    axes = _permute(axes, (2, 4, 1, 0, 3))  # [*lead, blocks, m, g, t, h, r]
    whole, quarters = split_blocks(num_positions)
    parts = [axes[..., :whole, :, :, :, :, :].reshape(*lead, -1)]
    if quarters:
        halves = -(-quarters // 2)
        parts.append(axes[..., whole, :, :, :, :halves, :].reshape(*lead, -1))
    return jnp.concatenate(parts, axis=-1).reshape(*lead[:-1], -1)


def untile_values(
    tiled: UInt32[Array, "*lead n"], num_positions: int, head_dim: int
) -> UInt32[Array, "*lead V W"]:
    """The inverse of `tile_values`."""
    tiled, dim = _split_planes(tiled, head_dim)
    lead, rows = tiled.shape[:-1], dim // 16
    whole, quarters = split_blocks(num_positions)
    size = whole * BLOCK * dim // 32
    axes = tiled[..., :size].reshape(*lead, whole, rows, 8, 4, 2, 2)
    if quarters:
        halves = -(-quarters // 2)
        rest = tiled[..., size:].reshape(*lead, 1, rows, 8, 4, halves, 2)
        rest = jnp.pad(rest, [(0, 0)] * (rest.ndim - 2) + [(0, 2 - halves), (0, 0)])
        axes = jnp.concatenate([axes, rest], axis=len(lead))
    blocks = axes.shape[len(lead)]
    words = _permute(axes, (3, 2, 0, 4, 1)).reshape(*lead, blocks, 8, 16 * rows, 1)
    codes = packing.unpack(words, 1, 32).swapaxes(-1, -2)
    packed = packing.pack(codes.reshape(*lead, blocks * BLOCK, dim), 1)
    return _join_planes(packed, num_positions, head_dim)


def tile_scales(scales: Shaped[Array, "*lead V"]) -> UInt32[Array, "*lead blocks 32 words"]:
    """Scales per position (uint8 or bfloat16) in the order of lanes; missing ones are zero."""
    *lead, _ = scales.shape
    blocks = _in_blocks(scales, axis=-1)
    axes = blocks.reshape(*lead, -1, 8, 4, 8)  # position = 32 i + 8 t + g
    per_lane = _permute(axes, (2, 1, 0)).reshape(*lead, blocks.shape[-2], 32, 8)
    return packing.as_words(per_lane)


def untile_scales(
    tiled: UInt32[Array, "*lead blocks 32 words"], num_positions: int
) -> Shaped[Array, "*lead V"]:
    """The inverse of `tile_scales`."""
    *lead, blocks, _, words = tiled.shape
    dtype = jnp.uint8 if words == 2 else jnp.bfloat16
    axes = jax.lax.bitcast_convert_type(tiled, dtype).reshape(*lead, blocks, 8, 4, 8)
    return _permute(axes, (2, 1, 0)).reshape(*lead, blocks * BLOCK)[..., :num_positions]


def tile_ids(ids: Int32[Array, "*lead V"], bits: int) -> UInt32[Array, "*lead blocks 8 bits"]:
    """Centroid numbers below 2^bits, a word for each bit; missing ones are zero."""
    blocks = _in_blocks(ids, axis=-1)
    by_row = blocks.reshape(*blocks.shape[:-1], 32, 8).swapaxes(-1, -2)[..., None, :]
    bit = jnp.arange(bits, dtype=ids.dtype).reshape(*[1] * (by_row.ndim - 2), -1, 1)
    return packing.pack(by_row >> bit & 1, 1)[..., 0]


def untile_ids(
    tiled: UInt32[Array, "*lead blocks 8 bits"], num_positions: int
) -> Int32[Array, "*lead V"]:
    """The inverse of `tile_ids`."""
    *lead, blocks, _, bits = tiled.shape
    planes = packing.unpack(tiled[..., None], 1, 32)  # [*lead, blocks, 8, bits, 32]
    weights = (1 << jnp.arange(bits, dtype=jnp.int32)).reshape(*[1] * (planes.ndim - 2), bits, 1)
    numbers = (planes * weights).sum(-2, dtype=jnp.int32).swapaxes(-1, -2)
    return numbers.reshape(*lead, blocks * BLOCK)[..., :num_positions]


def _by_plane(packed: UInt32[Array, "*lead V W"]) -> UInt32[Array, "*lead planes V P"]:
    """Words of each plane, with those of channels that are only stored."""
    *lead, num_positions, words = packed.shape
    stored, dim = stored_head_dim(32 * words), plane_dim(32 * words)
    whole = _pad_last(packed, stored // 32).reshape(*lead, num_positions, stored // dim, dim // 32)
    return whole.swapaxes(-3, -2)


def _split_planes(
    tiled: UInt32[Array, "*lead n"], head_dim: int
) -> tuple[UInt32[Array, "*lead planes m"], int]:
    """Words of each plane, and its channels."""
    dim = plane_dim(head_dim)
    return tiled.reshape(*tiled.shape[:-1], stored_head_dim(head_dim) // dim, -1), dim


def _join_planes(
    packed: UInt32[Array, "*lead planes P_V P"], num_positions: int, head_dim: int
) -> UInt32[Array, "*lead V W"]:
    """The inverse of `_by_plane`, without what is only stored."""
    *lead, planes, positions, words = packed.shape
    joined = packed.swapaxes(-3, -2).reshape(*lead, positions, planes * words)
    return joined[..., :num_positions, : packing.num_words(head_dim, 1)]


def _in_blocks(x: Array, axis: int) -> Array:
    """Splits the (negative) axis of positions into blocks, the last one filled with zeros."""
    positions = x.shape[axis]
    blocks = num_blocks(positions)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, blocks * BLOCK - positions)
    axis += x.ndim
    return jnp.pad(x, padding).reshape(*x.shape[:axis], blocks, BLOCK, *x.shape[axis + 1 :])


def _pad_last(x: Array, size: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _permute(x: Array, order: tuple[int, ...]) -> Array:
    """Permutes the last axes."""
    lead = x.ndim - len(order)
    return x.transpose(*range(lead), *(lead + axis for axis in order))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))
