"""How the banks that a kernel reads are coded: keys and values, packed or dense."""

import dataclasses
import math
from typing import Any, NamedTuple

from pallas_kernels.layout import layouts

__all__ = ["Coding", "Dense", "Packed"]


@dataclasses.dataclass(frozen=True)
class Coding:
    """How one side, keys or values, is coded.

    Attributes:
        scale_bits: of the scale per position of sign codes; 0: level codes, per channel.
        bits: of a code. Those of sign codes stand for odd numbers, -(2^bits - 1) to 2^bits - 1; of
            none there is only the centre.
        centres: centroids, one of which each position of sign codes has as its centre.
        codebook: whether each position has a centroid of the model's codebook beside its centre, of
            which there is one then.
        apart: whether planes are channels of their own, of a learned dictionary, not the bits of
            numbers.
        centred: whether the launch adds the centre; else it is added outside, see
            `outer_dictionary`.
        groups: groups of positions, each with its own levels. group_blocks: blocks of a group.
        rotated: whether the launch rotates channels, by the Hadamard matrix of the stored ones.
        in_units: whether channels are coded in units of their own (keys only).
        score_error_factor: see `vkq_jax.SignTensor` (keys only).
    """

    scale_bits: int = 0
    bits: int = 1
    groups: int = 1
    group_blocks: int = 0
    rotated: bool = False
    in_units: bool = False
    score_error_factor: float = 0.0
    centres: int = 1
    codebook: bool = False
    centred: bool = True
    apart: bool = False

    @property
    def count(self) -> Any:
        """`bits`; of a class that is chosen at run time a word, see `class_row`."""
        return self.bits

    @property
    def greatest(self) -> Any:
        """The greatest code, a float; see `count`."""
        return 1.0 if self.apart else 2.0**self.bits - 1.0

    def of_planes(self, count: int) -> "Coding":
        """The same where each bit has so many code planes, which are channels of their own."""
        return dataclasses.replace(self, bits=self.bits * count, apart=True)

    @property
    def signs(self) -> bool:
        """Sign codes with a scale per position."""
        return self.scale_bits > 0

    @property
    def own_centres(self) -> int:
        """Centres that the launch adds; of level codes there are none."""
        return self.centres if self.signs and self.centred else 0

    @property
    def id_bits(self) -> int:
        """Bits of the number of a position's centroid."""
        return 8 if self.codebook else (self.centres - 1).bit_length()

    @property
    def id_words(self) -> int:
        """Words of such numbers that a lane loads for a block."""
        return 2 if self.codebook else self.id_bits

    @property
    def centre_sums(self) -> int:
        """Sums of weights that tell the mass of each centroid, beside that of all."""
        return self.centres - 1

    @property
    def position_words(self) -> int:
        """Words that a lane loads for its positions of a block: scales, numbers of centroids."""
        return self.scale_bits // 4 + self.id_words


@dataclasses.dataclass(frozen=True)
class Packed:
    """A bank of packed visual tokens, or a class of tokens of dictionary codes.

    Attributes:
        num_positions: V. key, value: how they are coded.
        number: of a class of tokens, among `of_classes`; these are 0 where there are no classes.
    """

    num_positions: int
    key: Coding
    value: Coding
    number: int = 0
    of_classes: int = 0

    @property
    def name(self) -> str:
        """The start of the names of its own operands."""
        return f"class{self.number}_" if self.of_classes else ""

    @property
    def blocks(self) -> int:
        """Blocks, the one cut short included."""
        return layouts.num_blocks(self.num_positions)

    @property
    def whole_blocks(self) -> int:
        """Blocks that are not cut short."""
        return layouts.split_blocks(self.num_positions)[0]

    @property
    def quarters(self) -> int:
        """Quarters of the block that is cut short; 0: there is none."""
        return layouts.split_blocks(self.num_positions)[1]

    @property
    def most_bits(self) -> int:
        """Bits of a code, of the side that has more."""
        return max(self.key.bits, self.value.bits)

    @property
    def chunk_blocks(self) -> int:
        """Blocks in a row that share all tables."""
        sizes = [side.group_blocks for side in (self.key, self.value) if side.groups > 1]
        return math.gcd(*sizes) if sizes else self.blocks


class Dense(NamedTuple):
    """A bank of dense tokens.

    Attributes:
        name: the start of the names of its operands. capacity: slots.
        coded: whether tokens are in 8 bits, with a scale each, instead of bfloat16.
    """

    name: str
    capacity: int
    coded: bool = False
