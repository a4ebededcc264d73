"""Compilers for a GPU that is not there, and a count of what is compiled."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.isa.program import Program, run_on_gpu
from tests.support.ptx_operations import PtxOperations

__all__ = ["count_compilations", "lower_to_cuda", "needs_ptxas", "programs_of", "ptxas"]

needs_ptxas = pytest.mark.skipif(shutil.which("ptxas") is None, reason="needs ptxas")


def programs_of(
    code: Callable[..., object], *arguments: object
) -> list[tuple[Program, dict[str, jax.ShapeDtypeStruct]]]:
    """The programs that `code(*arguments, run=...)` runs, and shapes of their operands."""
    found = []

    def run(program, operands):
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in operands.items()}
        found.append((program, shapes))
        return tuple(jnp.zeros(x.shape, x.dtype) for x in program.results.values())

    jax.eval_shape(functools.partial(code, run=run), *arguments)
    return found


@dataclasses.dataclass(frozen=True)
class _Device(jax.sharding.AbstractDevice):
    """An abstract GPU with a compute capability, which Mosaic GPU asks devices for."""

    compute_capability: str


def lower_to_cuda(
    program: Program, operands: Mapping[str, jax.ShapeDtypeStruct], capability: str = "9.0"
) -> str:
    """The program as StableHLO for a GPU of a compute capability, kernel included."""
    device = _Device("a GPU", 132, "gpu", capability)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(functools.partial(run_on_gpu, program)).trace(operands)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def ptxas(
    program: Program,
    operands: Mapping[str, object],
    folder: pathlib.Path,
    targets: Sequence[str] = ("sm_90a",),
) -> str:
    """The report of `ptxas` on the program's body: registers, spills; fails if it refuses the body.

    The report is of the last of the targets.
    """
    ops = PtxOperations([*operands, *program.results])
    program.body(ops)
    report = ""
    for target in targets:
        source = folder / f"{target}.ptx"
        source.write_text(ops.text(threads=32 * program.warps, target=target))
        report = _assembled(source, target)
    return report


def _assembled(source: pathlib.Path, target: str) -> str:
    cubin = source.with_suffix(".cubin")
    command = ["ptxas", f"-arch={target}", "-O3", "-v", source, "-o", cubin]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """A list that gets the event of each program that XLA compiles meanwhile."""
    compiled = []

    def hear(event: str, seconds: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(details.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
