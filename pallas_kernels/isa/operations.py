"""The instructions that a kernel's body is written in, one method each.

A body is a Python function that is given an `Operations` and calls its methods on values of which
every lane of a warp holds its own. Each method's docstring says what it computes and its body says
which PTX instruction that is; a backend is a subclass:

| backend | what a call does |
|---|---|
| `mlir_operations.MlirOperations` | puts the instruction into the GPU kernel that is being built |
| `emulated_operations.EmulatedOperations` | computes it with NumPy, for all warps at once |

So the very same body runs on the GPU and, in tests, on a laptop. Values have one of three types:
`r` a 32-bit word (integers, packed bits), `f` a float32, `l` a 64-bit address. Wherever a word or a
float is expected a Python number may stand. Lane numbers are written `lane = 4 g + t`, as in the
PTX manual's pictures of matrix fragments.
"""

import abc
from collections.abc import Callable, Sequence

from pallas_kernels.isa.arithmetic import Arithmetic
from pallas_kernels.isa.instruction import Value
from pallas_kernels.isa.memory import LINE, Memory

__all__ = ["LINE", "Operations", "Value"]


class Operations(Arithmetic, Memory):
    """One method an instruction; see the module's docstring."""

    # Control flow and special registers ---------------------------------------------------------

    @abc.abstractmethod
    def loop(
        self,
        count: Value,
        carried: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """Runs `carried = body(i, carried)` for i in range(count); count is equal in all lanes."""

    @abc.abstractmethod
    def cond(
        self,
        condition: Value,
        carried: Sequence[Value],
        body: Callable[[list[Value]], Sequence[Value]],
        otherwise: Callable[[list[Value]], Sequence[Value]] = list,
    ) -> list[Value]:
        """`body(carried)` if the word `condition` (equal in all lanes) is not 0.

        Else `otherwise(carried)`: without one, what was carried.
        """

    @abc.abstractmethod
    def pointer(self, name: str) -> Value:
        """Address of the first byte of an operand in device memory."""

    @abc.abstractmethod
    def block_index(self) -> Value:
        """Number of this thread block in the grid."""

    @abc.abstractmethod
    def thread_index(self) -> Value:
        """Number of this thread in its block."""

    @abc.abstractmethod
    def shared(self) -> Value:
        """Address (a word) of the block's shared memory."""

    # Across the lanes of a warp -----------------------------------------------------------------

    def uniform(self, a: Value) -> Value:
        """The word of lane 0 in all lanes; tells the compiler that it is equal in all."""
        ptx = "shfl.sync.idx.b32 $0, $1, 0, 31, 0xffffffff;"
        return self.emit(ptx, "r", "r", a, ordered=True)

    def exchange(self, a: Value, bit: int) -> Value:
        """The word of the lane whose number differs in the bit of value `bit`."""
        ptx = f"shfl.sync.bfly.b32 $0, $1, {bit}, 31, 0xffffffff;"
        return self.emit(ptx, "r", "r", a, ordered=True)

    def take(self, a: Value, lane: Value) -> Value:
        """The word of the lane of that number."""
        ptx = "shfl.sync.idx.b32 $0, $1, $2, 31, 0xffffffff;"
        return self.emit(ptx, "r", "rr", a, lane, ordered=True)

    def ballot(self, a: Value) -> Value:
        """One bit for each lane, in all of them: whether its word is not 0."""
        ptx = "{ .reg .pred p; setp.ne.b32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }"
        return self.emit(ptx, "r", "r", a, ordered=True)

    def warp_max(self, a: Value) -> Value:
        """The greatest signed word of the warp, in all lanes."""
        ptx = "redux.sync.max.s32 $0, $1, 0xffffffff;"
        return self.emit(ptx, "r", "r", a, ordered=True)

    def warp_add(self, a: Value) -> Value:
        """The sum of the words of the warp, modulo 2^32, in all lanes."""
        ptx = "redux.sync.add.u32 $0, $1, 0xffffffff;"
        return self.emit(ptx, "r", "r", a, ordered=True)

    def transpose_halves(self, a: Value) -> Value:
        """A matrix [8, 8] of halves, transposed: lane 4g + t holds (g, 2t) and (g, 2t + 1)."""
        ptx = "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;"
        return self.emit(ptx, "r", "r", a, ordered=True)

    # Tensor core: D = A B (+ C). Fragments: lane 4g + t holds of C the elements (row g, columns 2t
    # and 2t + 1), then those of row g + 8.

    def mma_b1_k128(
        self, a: Sequence[Value], b: Value, c: Sequence[Value] = (0, 0, 0, 0)
    ) -> list[Value]:
        """Counts of common one bits: D[16, 8] = C + sum over 128 bits of A[16, 128] & B[8, 128].

        Lane 4g + t holds bits 32t to 32t + 31: of A in rows g and g + 8, of B in row g.
        """
        ptx = (
            "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc "
            "{$0, $1, $2, $3}, {$4, $5}, {$6}, {$7, $8, $9, $10};"
        )
        return self.emit(ptx, "rrrr", "rrrrrrr", *a, b, *c)

    def mma_b1_k256(
        self, a: Sequence[Value], b: Sequence[Value], c: Sequence[Value] = (0, 0, 0, 0)
    ) -> list[Value]:
        """The same over 256 bits: a second pair of A and second word of B hold bits 128 + 32t."""
        ptx = (
            "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        return self.emit(ptx, "rrrr", "rrrrrrrrrr", *a, *b, *c)

    def mma_u8_s8(self, a: Sequence[Value], b: Sequence[Value], c: Sequence[Value]) -> list[Value]:
        """Byte product: D[16, 8] = A[16, 32] B[32, 8] + C; A unsigned, B signed, 32-bit sums.

        Each word holds four neighbours. Lane 4g + t holds of A columns 4t to 4t + 3 of rows g and
        g + 8, then columns 4t + 16 to 4t + 19 of both; of B rows 4t to 4t + 3, then 4t + 16 to
        4t + 19 of column g.
        """
        return self._mma_bytes("s8", a, b, c)

    def mma_u8_u8(self, a: Sequence[Value], b: Sequence[Value], c: Sequence[Value]) -> list[Value]:
        """`mma_u8_s8` with B unsigned."""
        return self._mma_bytes("u8", a, b, c)

    def _mma_bytes(self, right: str, a, b, c) -> list[Value]:
        ptx = (
            f"mma.sync.aligned.m16n8k32.row.col.s32.u8.{right}.s32 {{$0, $1, $2, $3}}, "
            "{$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        return self.emit(ptx, "rrrr", "rrrrrrrrrr", *a, *b, *c)

    def mma_f16(self, a: Sequence[Value], b: Sequence[Value], c: Sequence[Value]) -> list[Value]:
        """Half-precision product: D[16, 8] = A[16, 16] B[16, 8] + C, float32 sums.

        Each word holds two neighbours. Lane 4g + t holds of A columns 2t, 2t + 1 of rows g and
        g + 8, then columns 2t + 8, 2t + 9 of both; of B rows 2t, 2t + 1, then 2t + 8, 2t + 9 of
        column g.
        """
        ptx = (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0, $1, $2, $3}, "
            "{$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        return self.emit(ptx, "ffff", "rrrrrrffff", *a, *b, *c)

    def mma_bfloat16(
        self, a: Sequence[Value], b: Sequence[Value], c: Sequence[Value]
    ) -> list[Value]:
        """`mma_f16` with operands in bfloat16."""
        ptx = (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3}, "
            "{$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        return self.emit(ptx, "ffff", "rrrrrrffff", *a, *b, *c)
