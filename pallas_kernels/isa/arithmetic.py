"""Instructions that compute with words and floats, see `operations`."""

from pallas_kernels.isa.instruction import Instructions, Value

__all__ = ["Arithmetic"]


class Arithmetic(Instructions):
    """One method an instruction."""

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

    def where_float_less(self, a: Value, b: Value, x: Value, y: Value) -> Value:
        """The word x where the floats a < b, else the word y."""
        ptx = "{ .reg .pred p; setp.lt.f32 p, $1, $2; selp.b32 $0, $3, $4, p; }"
        return self.emit(ptx, "r", "ffrr", a, b, x, y)

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
