"""The instructions of `Operations` in NumPy, lane by lane: kernels run on any machine.

A value is an array `[warps, 32]`: all warps of all thread blocks run in lockstep, so a barrier only
checks that all of them have come. Loops run until the last warp is done, and a warp that has left
keeps its values. Every access to device memory is checked against the operand's size.
"""

from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from pallas_kernels.isa.operations import Operations, Value

__all__ = ["EmulatedOperations"]

_OPERAND = 1 << 40  # operands lie this far apart in the emulated address space


class EmulatedOperations(Operations):
    """Runs a body as it is called.

    Args:
        operands: arrays by name; outputs among them are written in place.
        blocks: thread blocks in the grid. warps: warps of each block.
        shared_words: 32-bit words of shared memory of each block.
    """

    def __init__(
        self,
        operands: Mapping[str, np.ndarray],
        *,
        blocks: int,
        warps: int,
        shared_words: int,
    ):
        """Starts all warps."""
        contiguous = (np.ascontiguousarray(x) for x in operands.values())
        self._memory = [x.reshape(-1).view(np.uint8) for x in contiguous]
        self._names = list(operands)
        self._shape = (blocks * warps, 32)
        self._warps = warps
        self._shared = np.full((blocks, shared_words), np.nan, np.float32)
        self._active = np.ones(blocks * warps, bool)

    def emit(self, ptx, results, arguments, *values, ordered=False):
        """Raises NotImplementedError: every instruction has a method of its own here."""
        raise NotImplementedError(f"no emulation of {ptx}")

    # Control flow and special registers

    def loop(
        self,
        count: Value,
        carried: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """See `Operations.loop`."""
        trips = self._uniform(_word(count).view(np.int32))
        outer, values = self._active, [self._full(value) for value in carried]
        longest = max([0, *trips[outer].tolist()])
        for i in range(longest):
            self._active = outer & (i < trips)
            values = self._keep(values, body(self._full(np.uint32(i)), values))
        self._active = outer
        return values

    def cond(
        self,
        condition: Value,
        carried: Sequence[Value],
        body: Callable[[list[Value]], Sequence[Value]],
        otherwise: Callable[[list[Value]], Sequence[Value]] = list,
    ) -> list[Value]:
        """See `Operations.cond`."""
        outer, old = self._active, [self._full(value) for value in carried]
        holds, values = self._uniform(_word(condition)) != 0, old
        for taken, branch in ((holds, body), (~holds, otherwise)):
            self._active = outer & taken
            if self._active.any():
                values = self._keep(values, branch(old))
        self._active = outer
        return values

    def pointer(self, name: str) -> Value:
        """See `Operations.pointer`."""
        return np.full(self._shape, (self._names.index(name) + 1) * _OPERAND, np.int64)

    def block_index(self) -> Value:
        """See `Operations.block_index`."""
        warps = np.arange(self._shape[0], dtype=np.uint32)[:, None]
        return self._full(warps // np.uint32(self._warps))

    def thread_index(self) -> Value:
        """See `Operations.thread_index`."""
        warps = np.arange(self._shape[0], dtype=np.uint32)[:, None] % np.uint32(self._warps)
        return warps * np.uint32(32) + np.arange(32, dtype=np.uint32)

    def shared(self) -> Value:
        """See `Operations.shared`."""
        return np.zeros(self._shape, np.uint32)

    # Integers

    def unknown(self, value):
        """See `Operations.unknown`."""
        return self._full(value)

    def add(self, a, b):
        """See `Operations.add`."""
        return _word(a) + _word(b)

    def sub(self, a, b):
        """See `Operations.sub`."""
        return _word(a) - _word(b)

    def mad(self, a, b, c):
        """See `Operations.mad`."""
        return _word(a) * _word(b) + _word(c)

    def div(self, a, divisor):
        """See `Operations.div`."""
        return _word(a) // np.uint32(divisor)

    def rem(self, a, divisor):
        """See `Operations.rem`."""
        return _word(a) % np.uint32(divisor)

    def min(self, a, b):
        """See `Operations.min`."""
        return np.minimum(_signed(a), _signed(b)).view(np.uint32)

    def max(self, a, b):
        """See `Operations.max`."""
        return np.maximum(_signed(a), _signed(b)).view(np.uint32)

    def bit_and(self, a, b):
        """See `Operations.bit_and`."""
        return _word(a) & _word(b)

    def bit_xor(self, a, b):
        """See `Operations.bit_xor`."""
        return _word(a) ^ _word(b)

    def bit_select(self, mask, a, b):
        """See `Operations.bit_select`."""
        return (_word(a) & _word(mask)) | (_word(b) & ~_word(mask))

    def shift_left(self, a, amount):
        """See `Operations.shift_left`."""
        return _word(a) << np.uint32(amount)

    def shift_right(self, a, amount):
        """See `Operations.shift_right`."""
        return _word(a) >> np.uint32(amount)

    def shift_right_signed(self, a, amount):
        """See `Operations.shift_right_signed`."""
        return (_signed(a) >> np.int32(amount)).view(np.uint32)

    def rotate_left(self, a, amount):
        """See `Operations.rotate_left`."""
        wide = _word(a).astype(np.uint64) << (_word(amount) & np.uint32(31)).astype(np.uint64)
        return (wide | (wide >> np.uint64(32))).astype(np.uint32)

    def shift_in(self, a, b):
        """See `Operations.shift_in`."""
        return _word(a) << np.uint32(1) | _word(b) >> np.uint32(31)

    def bytes(self, a, b, selector):
        """See `Operations.bytes`."""
        pair = _word(a).astype(np.uint64) | _word(b).astype(np.uint64) << np.uint64(32)
        chosen = np.uint64(0)
        for i in range(4):
            digit = (_word(selector) >> np.uint32(4 * i)).astype(np.uint64) & np.uint64(15)
            assert (digit < 8).all(), "sign-extending selectors are not emulated"
            byte = (pair >> (np.uint64(8) * digit)) & np.uint64(255)
            chosen = chosen | byte << np.uint64(8 * i)
        return chosen.astype(np.uint32)

    def where_less(self, a, b, x, y):
        """See `Operations.where_less`."""
        return np.where(_signed(a) < _signed(b), _word(x), _word(y))

    def equal(self, a, b):
        """See `Operations.equal`."""
        return (_word(a) == _word(b)).astype(np.uint32)

    def where_less_float(self, a, b, x, y):
        """See `Operations.where_less_float`."""
        return np.where(_signed(a) < _signed(b), _float(x), _float(y))

    def where_bit_float(self, a, bit, x, y):
        """See `Operations.where_bit_float`."""
        return np.where(_word(a) >> np.uint32(bit) & np.uint32(1) != 0, _float(x), _float(y))

    def low_bits(self, count):
        """See `Operations.low_bits`."""
        assert (_word(count) <= 32).all(), "more bits than a word has"
        ones = (np.uint64(1) << _word(count).astype(np.uint64)) - np.uint64(1)
        return ones.astype(np.uint32)

    def count_bits(self, a):
        """See `Operations.count_bits`."""
        return np.bitwise_count(_word(a)).astype(np.uint32)

    # Floats

    def fadd(self, a, b):
        """See `Operations.fadd`."""
        return _float(a) + _float(b)

    def fsub(self, a, b):
        """See `Operations.fsub`."""
        return _float(a) - _float(b)

    def fmul(self, a, b):
        """See `Operations.fmul`."""
        return _float(a) * _float(b)

    def fma(self, a, b, c):
        """See `Operations.fma`."""
        wide = _float(a).astype(np.float64) * _float(b).astype(np.float64)
        return (wide + _float(c)).astype(np.float32)

    def fabs(self, a):
        """See `Operations.fabs`."""
        return np.abs(_float(a))

    def fmax(self, a, b):
        """See `Operations.fmax`."""
        return np.maximum(_float(a), _float(b))

    def fmin(self, a, b):
        """See `Operations.fmin`."""
        return np.minimum(_float(a), _float(b))

    def exp2(self, a):
        """See `Operations.exp2`."""
        power = np.exp2(np.maximum(_float(a), np.float32(-127)))
        return np.where(_float(a) < -126, np.float32(0), power)

    def log2(self, a):
        """See `Operations.log2`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log2(_float(a))

    def reciprocal(self, a):
        """See `Operations.reciprocal`."""
        return np.float32(1) / _float(a)

    def to_float(self, a):
        """See `Operations.to_float`."""
        return _signed(a).astype(np.float32)

    def to_int(self, a):
        """See `Operations.to_int`."""
        return np.rint(_float(a)).astype(np.int32).view(np.uint32)

    def as_bits(self, a):
        """See `Operations.as_bits`."""
        return _float(a).view(np.uint32)

    def from_bits(self, a):
        """See `Operations.from_bits`."""
        return _word(a).view(np.float32)

    def pack_bfloat16(self, low, high):
        """See `Operations.pack_bfloat16`."""
        halves = (self._full(_float(x)).astype(ml_dtypes.bfloat16) for x in (low, high))
        low, high = (half.view(np.uint16).astype(np.uint32) for half in halves)
        return low | high << np.uint32(16)

    # Memory

    def address(self, base, index, stride):
        """See `Operations.address`."""
        return base + _word(index).astype(np.int64) * stride

    def where_less_address(self, a, b, x, y):
        """See `Operations.where_less_address`."""
        return np.where(_signed(a) < _signed(b), x, y)

    def load4(self, address, offset):
        """See `Operations.load4`."""
        return self._load(address, offset, np.uint32, 4)

    def load2(self, address, offset):
        """See `Operations.load2`."""
        return self._load(address, offset, np.uint32, 2)

    def load(self, address, offset=0):
        """See `Operations.load`."""
        return self._load(address, offset, np.uint32, 1)[0]

    def prefetch(self, address, offset):
        """See `Operations.prefetch`: only checks the address."""
        self._load(address, offset, np.uint32, 1)

    def load_half(self, address, offset=0):
        """See `Operations.load_half`."""
        return self._load(address, offset, np.uint16, 1)[0].astype(np.uint32)

    def load_float(self, address, offset=0):
        """See `Operations.load_float`."""
        return self._load(address, offset, np.float32, 1)[0]

    def store_float(self, condition, address, offset, value):
        """See `Operations.store_float`."""
        self.store(condition, address, offset, self.as_bits(value))

    def store(self, condition, address, offset, value):
        """See `Operations.store`."""
        self._store(condition, address, offset, [value])

    def store2(self, condition, address, offset, values):
        """See `Operations.store2`."""
        self._store(condition, address, offset, values)

    def store4(self, condition, address, offset, values):
        """See `Operations.store4`."""
        self._store(condition, address, offset, values)

    def copy_to_shared(self, shared, offset, address, address_offset=0, size=16):
        """See `Operations.copy_to_shared`: at once."""
        for i, word in enumerate(self._load(address, address_offset, np.uint32, size // 4)):
            self.store_shared(1, shared, offset + 4 * i, self.from_bits(word))

    def group_copies(self):
        """See `Operations.group_copies`."""

    def wait_for_copies(self, pending=0):
        """See `Operations.wait_for_copies`: nothing to wait for."""

    def store_shared(self, condition, address, offset, value):
        """See `Operations.store_shared`."""
        index = (self._full(_word(address)) + np.uint32(offset)) // np.uint32(4)
        writes = self._active[:, None] & (self._full(_word(condition)) != 0)
        self._shared[self.block_index()[writes], index[writes]] = self._full(_float(value))[writes]

    def add_shared(self, address, offset, value):
        """See `Operations.add_shared`."""
        index = (self._full(_word(address)) + np.uint32(offset)) // np.uint32(4)
        adds = np.broadcast_to(self._active[:, None], self._shape)
        at = (self.block_index()[adds], index[adds])
        assert not np.isnan(self._shared[at]).any(), "adds to what was never written"
        np.add.at(self._shared.view(np.uint32), at, self._full(_word(value))[adds])

    def load_shared(self, address, offset):
        """See `Operations.load_shared`."""
        index = (self._full(_word(address)) + np.uint32(offset)) // np.uint32(4)
        return self._shared[self.block_index(), np.where(self._active[:, None], index, 0)]

    def load_shared2(self, address, offset):
        """See `Operations.load_shared2`."""
        assert not ((_word(address) + np.uint32(offset)) % 8).any(), "misaligned access"
        return [self.as_bits(self.load_shared(address, offset + 4 * i)) for i in range(2)]

    def load_shared4(self, address, offset):
        """See `Operations.load_shared4`."""
        assert not ((_word(address) + np.uint32(offset)) % 16).any(), "misaligned access"
        return [self.as_bits(self.load_shared(address, offset + 4 * i)) for i in range(4)]

    def store_shared4(self, address, offset, values):
        """See `Operations.store_shared4`."""
        assert not ((_word(address) + np.uint32(offset)) % 16).any(), "misaligned access"
        for i, word in enumerate(values):
            self.store_shared(1, address, offset + 4 * i, self.from_bits(word))

    def warp_barrier(self):
        """See `Operations.warp_barrier`: lanes run in lockstep."""

    def barrier(self):
        """See `Operations.barrier`."""
        assert self._active.all(), "a barrier that not all warps reach"

    # Across the lanes of a warp

    def uniform(self, a):
        """See `Operations.uniform`."""
        return self._full(self._full(_word(a))[:, :1])

    def exchange(self, a, bit):
        """See `Operations.exchange`."""
        return self._full(_word(a))[:, np.arange(32) ^ bit]

    def take(self, a, lane):
        """See `Operations.take`."""
        lanes = (self._full(_word(lane)) & np.uint32(31)).astype(np.int64)
        return np.take_along_axis(self._full(_word(a)), lanes, axis=1)

    def ballot(self, a):
        """See `Operations.ballot`."""
        bits = (self._full(_word(a)) != 0).astype(np.uint32) << np.arange(32, dtype=np.uint32)
        return self._full(bits.sum(1, keepdims=True, dtype=np.uint32))

    def warp_max(self, a):
        """See `Operations.warp_max`."""
        highest = self._full(_word(a)).view(np.int32).max(1, keepdims=True)
        return self._full(highest.view(np.uint32))

    def warp_add(self, a):
        """See `Operations.warp_add`."""
        total = self._full(_word(a)).sum(1, keepdims=True, dtype=np.uint32)
        return self._full(total)

    def transpose_halves(self, a):
        """See `Operations.transpose_halves`."""
        matrix = self._full(_word(a)).copy().view(np.uint16).reshape(-1, 8, 8)
        transposed = np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(-1, 64)
        return transposed.view(np.uint32)

    # Tensor core

    def mma_b1_k128(self, a, b, c=(0, 0, 0, 0)):
        """See `Operations.mma_b1_k128`."""
        counts = self._accumulators(self._common_bits(a, b))
        return [_word(x) + _word(d) for x, d in zip(c, counts, strict=True)]

    def mma_b1_k256(self, a, b, c=(0, 0, 0, 0)):
        """See `Operations.mma_b1_k256`."""
        return self.mma_b1_k128(a[2:], b[1], self.mma_b1_k128(a[:2], b[0], c))

    def mma_u8_s8(self, a, b, c):
        """See `Operations.mma_u8_s8`."""
        return self._multiply_bytes(np.int8, a, b, c)

    def mma_u8_u8(self, a, b, c):
        """See `Operations.mma_u8_u8`."""
        return self._multiply_bytes(np.uint8, a, b, c)

    def _multiply_bytes(self, right_dtype, a, b, c):
        dtypes = (np.uint8,) * 4 + (right_dtype,) * 2
        parts = [  # each [warps, g, 4t + i]; float64 multiplies integers exactly and fast
            np.ascontiguousarray(self._full(_word(x))).view(d).reshape(-1, 8, 16).astype(np.float64)
            for x, d in zip((*a, *b), dtypes, strict=True)
        ]
        left = np.concatenate([np.concatenate(parts[i:4:2], 2) for i in (0, 1)], 1)
        product = left @ np.concatenate(parts[4:], 2).swapaxes(1, 2)
        registers = self._accumulators(product.astype(np.int64).astype(np.uint32))
        return [_word(x) + d for x, d in zip(c, registers, strict=True)]

    def mma_f16(self, a, b, c):
        """See `Operations.mma_f16`."""
        return self._mma_halves(np.float16, a, b, c)

    def mma_bfloat16(self, a, b, c):
        """See `Operations.mma_bfloat16`."""
        return self._mma_halves(ml_dtypes.bfloat16, a, b, c)

    def _mma_halves(self, dtype, a, b, c):
        halves = [self._halves(word, dtype) for word in (*a, *b)]  # each [warps, g, 2t + i]
        # Words 0 and 2 of A belong to row g, words 1 and 3 to row g + 8.
        left = np.concatenate([np.concatenate(halves[i:4:2], 2) for i in (0, 1)], 1)
        right = np.concatenate(halves[4:], 2)  # [warps, column, k]
        product = np.einsum("wmk,wnk->wmn", left, right)
        registers = self._accumulators(product.astype(np.float32))
        return [_float(x) + d for x, d in zip(c, registers, strict=True)]

    # What the methods above share

    def _full(self, value) -> np.ndarray:
        value = np.asarray(value)
        if value.dtype.kind == "f":
            value = _float(value)
        elif value.dtype != np.int64 or value.ndim == 0:
            value = _word(value)
        return np.broadcast_to(value, self._shape)

    def _keep(self, old, new) -> list[np.ndarray]:
        """New values in the active warps."""
        pairs = zip(old, new, strict=True)
        return [np.where(self._active[:, None], self._full(n), o) for o, n in pairs]

    def _uniform(self, value) -> np.ndarray:
        value = np.broadcast_to(value, self._shape)
        differs = (value != value[:, :1]).any(1) & self._active
        assert not differs.any(), "control flow that depends on the lane"
        return value[:, 0]

    def _resolve(self, address, offset, dtype, count, used):
        size = np.dtype(dtype).itemsize
        operands = np.unique(address[used] // _OPERAND)
        if not operands.size:
            return np.zeros(0, dtype), np.zeros(self._shape, np.int64)
        (operand,) = operands
        memory = self._memory[operand - 1]
        position = address % _OPERAND + offset
        bad = used & ((position < 0) | (position + count * size > memory.size))
        assert not bad.any(), f"access outside of operand {self._names[operand - 1]}"
        assert not (position[used] % (count * size)).any(), "misaligned access"
        return memory.view(dtype), position // size

    def _load(self, address, offset, dtype, count) -> list[np.ndarray]:
        used = np.broadcast_to(self._active[:, None], self._shape)
        memory, index = self._resolve(address, offset, dtype, count, used)
        values = [np.zeros(self._shape, dtype) for _ in range(count)]
        for i, value in enumerate(values):
            value[used] = memory[index[used] + i]
        return values

    def _store(self, condition, address, offset, values) -> None:
        writes = self._active[:, None] & (self._full(_word(condition)) != 0)
        memory, index = self._resolve(address, offset, np.uint32, len(values), writes)
        for i, value in enumerate(values):
            memory[index[writes] + i] = self._full(_word(value))[writes]

    def _common_bits(self, a, b) -> np.ndarray:
        def fragment(words):  # [warps, rows, 4 words]
            return np.concatenate([self._full(_word(w)).reshape(-1, 8, 4) for w in words], 1)

        common = fragment(a)[:, :, None] & fragment([b])[:, None]
        return np.bitwise_count(common).sum(-1, dtype=np.uint32)  # [warps, 16, 8]

    def _accumulators(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The four registers of each lane: rows g and g + 8, columns 2t and 2t + 1."""
        parts = matrix.reshape(-1, 2, 8, 4, 2)  # row = 8 half + g, column = 2 t + i
        return [parts[:, half, :, :, i].reshape(-1, 32) for half in (0, 1) for i in (0, 1)]

    def _halves(self, word, dtype) -> np.ndarray:
        """A word of a half-precision fragment as float64 [warps, g, 2t + i]."""
        halves = np.ascontiguousarray(self._full(_word(word))).view(dtype)
        return halves.reshape(-1, 8, 8).astype(np.float64)


def _word(value) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype == np.uint32:
        return value
    if value.dtype == np.int32:
        return value.view(np.uint32)
    return np.asarray(value & 0xFFFFFFFF, np.uint32)


def _signed(value) -> np.ndarray:
    return _word(value).view(np.int32)


def _float(value) -> np.ndarray:
    return np.asarray(value, np.float32)
