"""The instructions of `Operations` in NumPy, lane by lane: kernels run on any machine.

A value is an array `[warps, 32]`: all warps of all thread blocks run in lockstep, so a barrier only
checks that all of them have come. Loops run until the last warp is done, and a warp that has left
keeps its values. Every access to device memory is checked against the operand's size.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pallas_kernels.isa.emulated_arithmetic import EmulatedArithmetic
from pallas_kernels.isa.emulated_products import EmulatedProducts
from pallas_kernels.isa.emulated_values import as_float, as_signed, as_word
from pallas_kernels.isa.operations import Operations, Value

__all__ = ["EmulatedOperations"]

_OPERAND = 1 << 40  # operands lie this far apart in the emulated address space


class EmulatedOperations(EmulatedArithmetic, EmulatedProducts, Operations):
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
        trips = self._uniform(as_word(count).view(np.int32))
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
        holds, values = self._uniform(as_word(condition)) != 0, old
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

    # Memory

    def address(self, base, index, stride):
        """See `Operations.address`."""
        return base + as_word(index).astype(np.int64) * stride

    def where_less_address(self, a, b, x, y):
        """See `Operations.where_less_address`."""
        return np.where(as_signed(a) < as_signed(b), x, y)

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

    def load_float2(self, address, offset=0):
        """See `Operations.load_float2`."""
        return self._load(address, offset, np.float32, 2)

    def load_float4(self, address, offset=0):
        """See `Operations.load_float4`."""
        return self._load(address, offset, np.float32, 4)

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

    def copy_to_shared_where(self, condition, shared, address):
        """See `Operations.copy_to_shared_where`: at once."""
        for i, word in enumerate(self._load(address, 0, np.uint32, 4)):
            self.store_shared(condition, shared, 4 * i, self.from_bits(word))

    def group_copies(self):
        """See `Operations.group_copies`."""

    def wait_for_copies(self, pending=0):
        """See `Operations.wait_for_copies`: nothing to wait for."""

    def store_shared(self, condition, address, offset, value):
        """See `Operations.store_shared`."""
        index = (self._full(as_word(address)) + np.uint32(offset)) // np.uint32(4)
        writes = self._active[:, None] & (self._full(as_word(condition)) != 0)
        at = (self.block_index()[writes], index[writes])
        self._shared[at] = self._full(as_float(value))[writes]

    def add_shared(self, address, offset, value):
        """See `Operations.add_shared`."""
        index = (self._full(as_word(address)) + np.uint32(offset)) // np.uint32(4)
        adds = np.broadcast_to(self._active[:, None], self._shape)
        at = (self.block_index()[adds], index[adds])
        assert not np.isnan(self._shared[at]).any(), "adds to what was never written"
        np.add.at(self._shared.view(np.uint32), at, self._full(as_word(value))[adds])

    def load_shared(self, address, offset):
        """See `Operations.load_shared`."""
        index = (self._full(as_word(address)) + np.uint32(offset)) // np.uint32(4)
        return self._shared[self.block_index(), np.where(self._active[:, None], index, 0)]

    def load_shared2(self, address, offset):
        """See `Operations.load_shared2`."""
        assert not ((as_word(address) + np.uint32(offset)) % 8).any(), "misaligned access"
        return [self.as_bits(self.load_shared(address, offset + 4 * i)) for i in range(2)]

    def load_shared4(self, address, offset):
        """See `Operations.load_shared4`."""
        assert not ((as_word(address) + np.uint32(offset)) % 16).any(), "misaligned access"
        return [self.as_bits(self.load_shared(address, offset + 4 * i)) for i in range(4)]

    def store_shared4(self, address, offset, values):
        """See `Operations.store_shared4`."""
        assert not ((as_word(address) + np.uint32(offset)) % 16).any(), "misaligned access"
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
        return self._full(self._full(as_word(a))[:, :1])

    def exchange(self, a, bit):
        """See `Operations.exchange`."""
        return self._full(as_word(a))[:, np.arange(32) ^ bit]

    def take(self, a, lane):
        """See `Operations.take`."""
        lanes = (self._full(as_word(lane)) & np.uint32(31)).astype(np.int64)
        return np.take_along_axis(self._full(as_word(a)), lanes, axis=1)

    def ballot(self, a):
        """See `Operations.ballot`."""
        bits = (self._full(as_word(a)) != 0).astype(np.uint32) << np.arange(32, dtype=np.uint32)
        return self._full(bits.sum(1, keepdims=True, dtype=np.uint32))

    def warp_max(self, a):
        """See `Operations.warp_max`."""
        highest = self._full(as_word(a)).view(np.int32).max(1, keepdims=True)
        return self._full(highest.view(np.uint32))

    def warp_add(self, a):
        """See `Operations.warp_add`."""
        total = self._full(as_word(a)).sum(1, keepdims=True, dtype=np.uint32)
        return self._full(total)

    def transpose_halves(self, a):
        """See `Operations.transpose_halves`."""
        matrix = self._full(as_word(a)).copy().view(np.uint16).reshape(-1, 8, 8)
        transposed = np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(-1, 64)
        return transposed.view(np.uint32)

    # Shared by the methods above

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
        active = np.broadcast_to(self._active[:, None], self._shape)
        values = [np.zeros(self._shape, dtype) for _ in range(count)]
        operands = np.broadcast_to(address // _OPERAND, self._shape)
        for operand in np.unique(operands[active]):  # warps may read different ones
            used = active & (operands == operand)
            memory, index = self._resolve(address, offset, dtype, count, used)
            for i, value in enumerate(values):
                value[used] = memory[index[used] + i]
        return values

    def _store(self, condition, address, offset, values) -> None:
        writes = self._active[:, None] & (self._full(as_word(condition)) != 0)
        memory, index = self._resolve(address, offset, np.uint32, len(values), writes)
        for i, value in enumerate(values):
            memory[index[writes] + i] = self._full(as_word(value))[writes]
