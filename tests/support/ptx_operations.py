"""A third backend: the body as plain PTX text, so that `ptxas` can judge it without a GPU."""

import numpy as np

from pallas_kernels.isa.operations import Operations

_REGISTER = {"r": "%r", "f": "%f", "l": "%rd"}
_TYPE = {"r": "b32", "f": "f32", "l": "b64"}


class PtxOperations(Operations):
    """Writes one instruction after the other; `text()` is the whole module."""

    def __init__(self, operands: list[str]):
        self._lines, self._kinds, self._labels = [], [], 0
        self._operands = operands
        self._pointers = {name: self._new("l") for name in operands}
        for i, register in enumerate(self._pointers.values()):
            self._lines.append(f"ld.param.u64 {register}, [operand{i}];")

    def emit(self, ptx, results, arguments, *values, ordered=False):
        new = [self._new(letter) for letter in results]
        given = [self._value(v, t) for v, t in zip(values, arguments, strict=True)]
        for i, register in reversed(list(enumerate([*new, *given]))):
            ptx = ptx.replace(f"${i}", register)
        self._lines.append(ptx)
        return new if len(new) > 1 else new[0] if new else None

    def loop(self, count, carried, body):
        carried = [self._moved(value) for value in carried]
        i, count, label = self._moved(0), self._value(count, "r"), self._label()
        self._lines += [f"{{ .reg .pred p; setp.ge.s32 p, {i}, {count}; @p bra end{label}; }}"]
        self._lines += [f"loop{label}:"]
        self._set(carried, body(i, carried))
        self._lines += [
            f"add.s32 {i}, {i}, 1;",
            f"{{ .reg .pred p; setp.lt.s32 p, {i}, {count}; @p bra loop{label}; }}",
            f"end{label}:",
        ]
        return carried

    def cond(self, condition, carried, body, otherwise=list):
        carried = [self._moved(value) for value in carried]
        condition, label = self._value(condition, "r"), self._label()
        self._lines += [f"{{ .reg .pred p; setp.eq.b32 p, {condition}, 0; @p bra else{label}; }}"]
        self._set(carried, body(carried))
        self._lines += [f"bra end{label};", f"else{label}:"]
        self._set(carried, otherwise(carried))
        self._lines += [f"end{label}:"]
        return carried

    def pointer(self, name):
        return self._pointers[name]

    def block_index(self):
        return self.emit("mov.u32 $0, %ctaid.x;", "r", "")

    def thread_index(self):
        return self.emit("mov.u32 $0, %tid.x;", "r", "")

    def shared(self):
        return self.emit("mov.u32 $0, scratch;", "r", "")

    def text(self, threads: int, target: str = "sm_90a") -> str:
        """The module, its kernel for blocks of that many threads."""
        version = "8.7" if target.startswith(("sm_10", "sm_12")) else "8.0"  # of the PTX ISA
        parameters = ", ".join(f".param .u64 operand{i}" for i in range(len(self._operands)))
        registers = [
            f".reg .{_TYPE[letter]} {name}<{len(self._kinds)}>;"
            for letter, name in _REGISTER.items()
        ]
        return "\n".join(
            [
                f".version {version}",
                f".target {target}",
                ".address_size 64",
                ".extern .shared .align 16 .b8 scratch[];",
                f".visible .entry kernel({parameters}) .maxntid {threads}, 1, 1 {{",
                *registers,
                *self._lines,
                "ret;",
                "}",
            ]
        )

    def _new(self, letter):
        self._kinds.append(letter)
        return f"{_REGISTER[letter]}{len(self._kinds) - 1}"

    def _label(self):
        self._labels += 1
        return self._labels

    def _type(self, register):
        return "f32" if register.startswith("%f") else "b32"

    def _set(self, carried, values):
        new = [self._moved(value) for value in values]
        self._lines += [f"mov.{self._type(c)} {c}, {n};" for c, n in zip(carried, new, strict=True)]

    def _moved(self, value):
        letter = "f" if isinstance(value, float) or str(value).startswith("%f") else "r"
        register = self._new(letter)
        self._lines.append(f"mov.{_TYPE[letter]} {register}, {self._value(value, letter)};")
        return register

    def _value(self, value, letter):
        if isinstance(value, str):
            return value
        register = self._new(letter)
        if letter == "f":
            literal = f"0f{np.float32(value).view(np.uint32):08X}"
        else:
            literal = str(value & 0xFFFFFFFF)
        self._lines.append(f"mov.{_TYPE[letter]} {register}, {literal};")
        return register


__all__ = ["PtxOperations"]
