"""Compilers for a GPU that is not there, and a count of what is compiled."""

import contextlib
import functools
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping

import jax
import pytest

from pallas_kernels.isa.program import Program, run_on_gpu
from tests.support.ptx_operations import PtxOperations

__all__ = ["count_compilations", "lower_to_cuda", "needs_ptxas", "ptxas"]

needs_ptxas = pytest.mark.skipif(shutil.which("ptxas") is None, reason="needs ptxas")


def lower_to_cuda(program: Program, operands: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """The program as StableHLO for an H100, kernel included."""
    device = contextlib.nullcontext()
    if hasattr(jax.sharding, "AbstractDevice"):
        mesh = jax.sharding.AbstractMesh(
            (), (), abstract_device=jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
        )
        device = jax.sharding.use_abstract_mesh(mesh)
    with device:
        traced = jax.jit(functools.partial(run_on_gpu, program)).trace(operands)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def ptxas(program: Program, operands: Mapping[str, object], folder: pathlib.Path) -> str:
    """What `ptxas` reports of the program's body: registers, spills; fails if it refuses it."""
    ops = PtxOperations([*operands, *program.results])
    program.body(ops)
    source = folder / "kernel.ptx"
    source.write_text(ops.text(threads=32 * program.warps))
    command = ["ptxas", "-arch=sm_90a", "-O3", "-v", source, "-o", folder / "kernel.cubin"]
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
