"""Instructions that read and write device memory and shared memory, see `operations`."""

from collections.abc import Sequence

from pallas_kernels.isa.instruction import Instructions, Value

__all__ = ["LINE", "Memory"]

LINE = 128  # bytes of a line of the L2 cache: what one lane prefetches


class Memory(Instructions):
    """One method an instruction."""

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

    def load_float2(self, address: Value, offset: int = 0) -> list[Value]:
        """Two floats from 8 bytes of device memory."""
        ptx = f"ld.global.nc.v2.f32 {{$0, $1}}, [$2+{offset}];"
        return self.emit(ptx, "ff", "l", address, ordered=True)

    def load_float4(self, address: Value, offset: int = 0) -> list[Value]:
        """Four floats from 16 bytes of device memory."""
        ptx = f"ld.global.nc.v4.f32 {{$0, $1, $2, $3}}, [$4+{offset}];"
        return self.emit(ptx, "ffff", "l", address, ordered=True)

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

    def copy_to_shared_where(self, condition: Value, shared: Value, address: Value) -> None:
        """`copy_to_shared` of 16 bytes in the lanes whose word `condition` is not 0."""
        ptx = "{ .reg .pred p; setp.ne.b32 p, $0, 0; @p cp.async.cg.shared.global [$1], [$2], 16; }"
        self.emit(ptx, "", "rrl", condition, shared, address, ordered=True)

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
