"""The instructions of `Operations` as inline PTX in a Mosaic GPU kernel under construction."""

from collections.abc import Callable, Mapping, Sequence

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, scf

from pallas_kernels.isa.operations import Operations, Value

__all__ = ["MlirOperations"]


class MlirOperations(Operations):
    """Builds the body at the current insertion point (Lane semantics: values are per thread).

    Args:
        operands: references to device memory by name. shared: reference to shared memory.
    """

    def __init__(self, operands: Mapping[str, ir.Value], shared: ir.Value):
        """Keeps the operands' addresses."""
        self._types = {
            "r": ir.IntegerType.get_signless(32),
            "f": ir.F32Type.get(),
            "l": ir.IntegerType.get_signless(64),
        }
        self._pointers = {name: self._address_of(ref, "l") for name, ref in operands.items()}
        self._shared = self._address_of(shared, "r")

    def emit(self, ptx: str, results: str, arguments: str, *values: Value, ordered: bool = False):
        """See `Operations.emit`."""
        operands = [self._value(v, t) for v, t in zip(values, arguments, strict=True)]
        types = [self._types[letter] for letter in results]
        match types:
            case []:
                returned = ir.Type.parse("!llvm.void")
            case [single]:
                returned = single
            case _:
                returned = llvm.StructType.get_literal(types)
        constraints = ",".join([f"={letter}" for letter in results] + list(arguments))
        if ordered:
            constraints = f"{constraints},~{{memory}}" if constraints else "~{memory}"
        result = llvm.inline_asm(
            returned, operands, ptx, constraints, asm_dialect=0, has_side_effects=ordered
        )
        if len(types) < 2:
            return result
        return [llvm.extractvalue(t, result, [i]) for i, t in enumerate(types)]

    def loop(
        self,
        count: Value,
        carried: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """See `Operations.loop`."""
        initial = [self._value(value) for value in carried]
        bounds = [self._value(value) for value in (0, count, 1)]
        loop = scf.ForOp(bounds[0], bounds[1], bounds[2], initial)
        with ir.InsertionPoint(loop.body):
            new = body(loop.induction_variable, list(loop.inner_iter_args))
            scf.YieldOp([self._value(value) for value in new])
        return list(loop.results)

    def cond(
        self,
        condition: Value,
        carried: Sequence[Value],
        body: Callable[[list[Value]], Sequence[Value]],
        otherwise: Callable[[list[Value]], Sequence[Value]] = list,
    ) -> list[Value]:
        """See `Operations.cond`."""
        old = [self._value(value) for value in carried]
        holds = arith.cmpi(arith.CmpIPredicate.ne, self._value(condition), self._value(0))
        has_else = bool(old) or otherwise is not list
        branch = scf.IfOp(holds, [value.type for value in old], has_else=has_else)
        with ir.InsertionPoint(branch.then_block):
            scf.YieldOp([self._value(value) for value in body(old)])
        if branch.else_block is not None:
            with ir.InsertionPoint(branch.else_block):
                scf.YieldOp([self._value(value) for value in otherwise(old)])
        return list(branch.operation.results)

    def pointer(self, name: str) -> Value:
        """See `Operations.pointer`."""
        return self._pointers[name]

    def block_index(self) -> Value:
        """See `Operations.block_index`."""
        return arith.index_cast(self._types["r"], gpu.block_id(gpu.Dimension.x))

    def thread_index(self) -> Value:
        """See `Operations.thread_index`."""
        return utils.thread_idx()

    def shared(self) -> Value:
        """See `Operations.shared`."""
        return self._shared

    def _address_of(self, ref: ir.Value, letter: str) -> ir.Value:
        return llvm.ptrtoint(self._types[letter], utils.memref_ptr(ref))

    def _value(self, value: Value, letter: str | None = None) -> ir.Value:
        """The value itself, or a Python number as a constant of the type that is wanted."""
        if not isinstance(value, int | float):
            return value
        if letter == "f" or isinstance(value, float):
            return arith.constant(self._types["f"], ir.FloatAttr.get(self._types["f"], value))
        signed = (value + 2**31) % 2**32 - 2**31
        return arith.constant(self._types["r"], ir.IntegerAttr.get(self._types["r"], signed))
