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
from typing import Any

__all__ = ["LINE", "Operations", "Value"]

Value = Any  # what a backend computes with; a body never looks inside
LINE = 128  # bytes of a line of the L2 cache: what one lane prefetches


class Operations(abc.ABC):
    """One method an instruction; see the module's docstring."""

    @abc.abstractmethod
    def emit(
        self, ptx: str, results: str, arguments: str, *values: Value, ordered: bool = False
    ) -> Any:
        """One instruction: `$0, $1, ...` in `ptx` are its results, then its arguments.

        Args:
            ptx: the instruction. results, arguments: a type letter for each.
            values: the arguments.
            ordered: it touches memory or other lanes and must stay where it is.
        """

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

    # Integers -----------------------------------------------------------------------------------

    def unknown(self, value: int) -> Value:
        """A word that the compiler does not know (grids have no third axis: it adds 0)."""
        return self.emit("mov.u32 $0, %ctaid.z; add.u32 $0, $0, $1;", "r", "r", value)

    def add(self, a: Value, b: Value) -> Value:
        """The sum a + b, modulo 2^32."""
        return self.emit("add.u32 $0, $1, $2;", "r", "rr", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        """The difference a - b, modulo 2^32."""
        return self.emit("sub.u32 $0, $1, $2;", "r", "rr", a, b)

    def mad(self, a: Value, b: Value, c: Value) -> Value:
        """The low 32 bits of a * b + c."""
        return self.emit("mad.lo.u32 $0, $1, $2, $3;", "r", "rrr", a, b, c)

    def div(self, a: Value, divisor: int) -> Value:
        """The quotient a // divisor, of unsigned words by a constant."""
        return self.emit(f"div.u32 $0, $1, {divisor};", "r", "r", a)

    def rem(self, a: Value, divisor: int) -> Value:
        """The remainder a % divisor, of unsigned words by a constant."""
        return self.emit(f"rem.u32 $0, $1, {divisor};", "r", "r", a)

    def min(self, a: Value, b: Value) -> Value:
        """The smaller of two signed words."""
        return self.emit("min.s32 $0, $1, $2;", "r", "rr", a, b)

    def max(self, a: Value, b: Value) -> Value:
        """The greater of two signed words."""
        return self.emit("max.s32 $0, $1, $2;", "r", "rr", a, b)

    def bit_and(self, a: Value, b: Value) -> Value:
        """The bits in both a and b."""
        return self.emit("and.b32 $0, $1, $2;", "r", "rr", a, b)

    def bit_xor(self, a: Value, b: Value) -> Value:
        """The bits in just one of a and b."""
        return self.emit("xor.b32 $0, $1, $2;", "r", "rr", a, b)

    def bit_select(self, mask: Value, a: Value, b: Value) -> Value:
        """Bits of a where the mask is 1, of b where it is 0."""
        return self.emit("lop3.b32 $0, $1, $2, $3, 0xca;", "r", "rrr", mask, a, b)

    def shift_left(self, a: Value, amount: int) -> Value:
        """The word a << amount."""
        return self.emit(f"shl.b32 $0, $1, {amount};", "r", "r", a)

    def shift_right(self, a: Value, amount: int) -> Value:
        """The word a >> amount, filled with zeros."""
        return self.emit(f"shr.u32 $0, $1, {amount};", "r", "r", a)

    def shift_right_signed(self, a: Value, amount: int) -> Value:
        """The word a >> amount, filled with copies of the sign."""
        return self.emit(f"shr.s32 $0, $1, {amount};", "r", "r", a)

    def rotate_left(self, a: Value, amount: Value) -> Value:
        """The word's bits moved up by `amount`, those that fall out coming in below."""
        return self.emit("shf.l.wrap.b32 $0, $1, $1, $2;", "r", "rr", a, amount)

    def shift_in(self, a: Value, b: Value) -> Value:
        """The word a << 1, the highest bit of b coming in below."""
        return self.emit("shf.l.wrap.b32 $0, $2, $1, 1;", "r", "rr", a, b)

    def bytes(self, a: Value, b: Value, selector: Value) -> Value:
        """Four bytes of (a, b): digit i of the selector (0-3 in a, 4-7 in b) gives byte i."""
        return self.emit("prmt.b32 $0, $1, $2, $3;", "r", "rrr", a, b, selector)

    def where_less(self, a: Value, b: Value, x: Value, y: Value) -> Value:
        """The word x where a < b (signed), else y."""
        ptx = "{ .reg .pred p; setp.lt.s32 p, $1, $2; selp.b32 $0, $3, $4, p; }"
        return self.emit(ptx, "r", "rrrr", a, b, x, y)

    def equal(self, a: Value, b: Value) -> Value:
        """The word 1 where a = b, else 0."""
        ptx = "{ .reg .pred p; setp.eq.u32 p, $1, $2; selp.b32 $0, 1, 0, p; }"
        return self.emit(ptx, "r", "rr", a, b)

    def where_less_float(self, a: Value, b: Value, x: Value, y: Value) -> Value:
        """The float x where the words a < b (signed), else the float y."""
        ptx = "{ .reg .pred p; setp.lt.s32 p, $1, $2; selp.f32 $0, $3, $4, p; }"
        return self.emit(ptx, "f", "rrff", a, b, x, y)

    def where_bit_float(self, a: Value, bit: int, x: Value, y: Value) -> Value:
        """The float x where that bit of the word a is 1, else the float y."""
        ptx = (
            "{ .reg .pred p; .reg .b32 r; "
            f"and.b32 r, $1, {1 << bit:#x}; setp.ne.b32 p, r, 0; selp.f32 $0, $2, $3, p; }}"
        )
        return self.emit(ptx, "f", "rff", a, x, y)

    def low_bits(self, count: Value) -> Value:
        """The word whose lowest `count` bits, 0 to 32, are 1."""
        return self.emit("bmsk.clamp.b32 $0, 0, $1;", "r", "r", count)

    def count_bits(self, a: Value) -> Value:
        """How many bits of a are 1."""
        return self.emit("popc.b32 $0, $1;", "r", "r", a)

    # Floats -------------------------------------------------------------------------------------

    def fadd(self, a: Value, b: Value) -> Value:
        """The sum a + b."""
        return self.emit("add.f32 $0, $1, $2;", "f", "ff", a, b)

    def fsub(self, a: Value, b: Value) -> Value:
        """The difference a - b."""
        return self.emit("sub.f32 $0, $1, $2;", "f", "ff", a, b)

    def fmul(self, a: Value, b: Value) -> Value:
        """The product a * b."""
        return self.emit("mul.f32 $0, $1, $2;", "f", "ff", a, b)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """The float a * b + c, rounded once."""
        return self.emit("fma.rn.f32 $0, $1, $2, $3;", "f", "fff", a, b, c)

    def fabs(self, a: Value) -> Value:
        """The float a without its sign."""
        return self.emit("abs.f32 $0, $1;", "f", "f", a)

    def fmax(self, a: Value, b: Value) -> Value:
        """The greater of two floats."""
        return self.emit("max.f32 $0, $1, $2;", "f", "ff", a, b)

    def fmin(self, a: Value, b: Value) -> Value:
        """The smaller of two floats."""
        return self.emit("min.f32 $0, $1, $2;", "f", "ff", a, b)

    def exp2(self, a: Value) -> Value:
        """The power 2^a, to about 2 units in the last place; exactly 0 below 2^-126."""
        return self.emit("ex2.approx.ftz.f32 $0, $1;", "f", "f", a)

    def log2(self, a: Value) -> Value:
        """Logarithm to base 2; -inf for 0."""
        return self.emit("lg2.approx.f32 $0, $1;", "f", "f", a)

    def reciprocal(self, a: Value) -> Value:
        """The quotient 1 / a, to about 1 unit in the last place."""
        return self.emit("rcp.approx.f32 $0, $1;", "f", "f", a)

    def to_float(self, a: Value) -> Value:
        """A signed word as the nearest float."""
        return self.emit("cvt.rn.f32.s32 $0, $1;", "f", "r", a)

    def to_int(self, a: Value) -> Value:
        """The nearest integer, as a signed word."""
        return self.emit("cvt.rni.s32.f32 $0, $1;", "r", "f", a)

    def as_bits(self, a: Value) -> Value:
        """The bits of a float."""
        return self.emit("mov.b32 $0, $1;", "r", "f", a)

    def from_bits(self, a: Value) -> Value:
        """The float that has these bits."""
        return self.emit("mov.b32 $0, $1;", "f", "r", a)

    def pack_bfloat16(self, low: Value, high: Value) -> Value:
        """Two floats, rounded to bfloat16, as the halves of a word."""
        return self.emit("cvt.rn.bf16x2.f32 $0, $2, $1;", "r", "ff", low, high)

    # Memory -------------------------------------------------------------------------------------

    def address(self, base: Value, index: Value, stride: int) -> Value:
        """The address base + index * stride (bytes), for an unsigned index."""
        return self.emit(f"mad.wide.u32 $0, $1, {stride}, $2;", "l", "rl", index, base)

    def where_less_address(self, a: Value, b: Value, x: Value, y: Value) -> Value:
        """The address x where the words a < b (signed), else the address y."""
        ptx = "{ .reg .pred p; setp.lt.s32 p, $1, $2; selp.b64 $0, $3, $4, p; }"
        return self.emit(ptx, "l", "rrll", a, b, x, y)

    def load4(self, address: Value, offset: int) -> list[Value]:
        """Four words from 16 bytes of device memory that are read once."""
        ptx = "ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {$0, $1, $2, $3}, "
        return self.emit(ptx + f"[$4+{offset}];", "rrrr", "l", address, ordered=True)

    def load2(self, address: Value, offset: int) -> list[Value]:
        """Two words from 8 bytes of device memory that are read once."""
        ptx = "ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {$0, $1}, "
        return self.emit(ptx + f"[$2+{offset}];", "rr", "l", address, ordered=True)

    def load(self, address: Value, offset: int = 0) -> Value:
        """A word from device memory."""
        return self.emit(f"ld.global.nc.u32 $0, [$1+{offset}];", "r", "l", address, ordered=True)

    def prefetch(self, address: Value, offset: int) -> None:
        """Has the line of an address in device memory brought into the L2 cache."""
        self.emit(f"prefetch.global.L2 [$0+{offset}];", "", "l", address, ordered=True)

    def load_half(self, address: Value, offset: int = 0) -> Value:
        """Two bytes from device memory, as the low half of a word."""
        return self.emit(f"ld.global.nc.u16 $0, [$1+{offset}];", "r", "l", address, ordered=True)

    def load_float(self, address: Value, offset: int = 0) -> Value:
        """A float from device memory."""
        return self.emit(f"ld.global.nc.f32 $0, [$1+{offset}];", "f", "l", address, ordered=True)

    def store_float(self, condition: Value, address: Value, offset: int, value: Value) -> None:
        """Writes a float to device memory in the lanes whose word `condition` is not 0."""
        ptx = f"{{ .reg .pred p; setp.ne.b32 p, $0, 0; @p st.global.f32 [$1+{offset}], $2; }}"
        self.emit(ptx, "", "rlf", condition, address, value, ordered=True)

    def store(self, condition: Value, address: Value, offset: int, value: Value) -> None:
        """Writes a word to device memory in the lanes whose word `condition` is not 0."""
        ptx = f"{{ .reg .pred p; setp.ne.b32 p, $0, 0; @p st.global.b32 [$1+{offset}], $2; }}"
        self.emit(ptx, "", "rlr", condition, address, value, ordered=True)

    def store2(
        self, condition: Value, address: Value, offset: int, values: Sequence[Value]
    ) -> None:
        """`store` of two words to 8 bytes."""
        ptx = (
            "{ .reg .pred p; setp.ne.b32 p, $0, 0; "
            f"@p st.global.v2.b32 [$1+{offset}], {{$2, $3}}; }}"
        )
        self.emit(ptx, "", "rlrr", condition, address, *values, ordered=True)

    def store4(
        self, condition: Value, address: Value, offset: int, values: Sequence[Value]
    ) -> None:
        """`store` of four words to 16 bytes."""
        ptx = (
            "{ .reg .pred p; setp.ne.b32 p, $0, 0; "
            f"@p st.global.v4.b32 [$1+{offset}], {{$2, $3, $4, $5}}; }}"
        )
        self.emit(ptx, "", "rlrrrr", condition, address, *values, ordered=True)

    def copy_to_shared(
        self, shared: Value, offset: int, address: Value, address_offset: int = 0, size: int = 16
    ) -> None:
        """Starts to copy 16 or 8 bytes of device memory to shared memory; see `group_copies`."""
        cache = "cg" if size == 16 else "ca"
        ptx = f"cp.async.{cache}.shared.global [$0+{offset}], [$1+{address_offset}], {size};"
        self.emit(ptx, "", "rl", shared, address, ordered=True)

    def group_copies(self) -> None:
        """Makes a group of this lane's copies since the last one, for `wait_for_copies`."""
        self.emit("cp.async.commit_group;", "", "", ordered=True)

    def wait_for_copies(self, pending: int = 0) -> None:
        """Waits for all groups but the last `pending`; other lanes see them after a barrier."""
        self.emit(f"cp.async.wait_group {pending};", "", "", ordered=True)

    def store_shared(self, condition: Value, address: Value, offset: int, value: Value) -> None:
        """Writes a float to shared memory in the lanes whose word `condition` is not 0."""
        ptx = f"{{ .reg .pred p; setp.ne.b32 p, $0, 0; @p st.shared.f32 [$1+{offset}], $2; }}"
        self.emit(ptx, "", "rrf", condition, address, value, ordered=True)

    def add_shared(self, address: Value, offset: int, value: Value) -> None:
        """Adds a word to one of shared memory, modulo 2^32; lanes may add to the same one."""
        self.emit(f"red.shared.add.u32 [$0+{offset}], $1;", "", "rr", address, value, ordered=True)

    def load_shared(self, address: Value, offset: int) -> Value:
        """A float from shared memory."""
        return self.emit(f"ld.shared.f32 $0, [$1+{offset}];", "f", "r", address, ordered=True)

    def load_shared2(self, address: Value, offset: int) -> list[Value]:
        """Two words from 8 bytes of shared memory."""
        ptx = f"ld.shared.v2.u32 {{$0, $1}}, [$2+{offset}];"
        return self.emit(ptx, "rr", "r", address, ordered=True)

    def load_shared4(self, address: Value, offset: int) -> list[Value]:
        """Four words from 16 bytes of shared memory."""
        ptx = f"ld.shared.v4.u32 {{$0, $1, $2, $3}}, [$4+{offset}];"
        return self.emit(ptx, "rrrr", "r", address, ordered=True)

    def store_shared4(self, address: Value, offset: int, values: Sequence[Value]) -> None:
        """Writes four words to 16 bytes of shared memory."""
        ptx = f"st.shared.v4.u32 [$0+{offset}], {{$1, $2, $3, $4}};"
        self.emit(ptx, "", "rrrrr", address, *values, ordered=True)

    def barrier(self) -> None:
        """Waits for all threads of the block: what they wrote to shared memory can be read."""
        self.emit("bar.sync 0;", "", "", ordered=True)

    def warp_barrier(self) -> None:
        """`barrier` for the lanes of a warp."""
        self.emit("bar.warp.sync 0xffffffff;", "", "", ordered=True)

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
