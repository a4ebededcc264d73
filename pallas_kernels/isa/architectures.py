"""Generations of NVIDIA GPUs, as far as kernels depend on them."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import jax

__all__ = ["ARCHITECTURES", "HOPPER", "Architecture", "architecture_here"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The GPUs of one compute capability (CUDA C++ Programming Guide, "Compute Capabilities"; PTX
    ISA, "mma").

    Attributes:
        capability: compute capability, major and minor.
        shared_bytes: shared memory that a thread block may have.
        multiplies_bits: tensor cores multiply 1-bit matrices; elsewhere `ptxas` writes such a
            product as many other instructions.
        tried: the kernels have been run and timed there.
    """

    capability: str
    shared_bytes: int
    multiplies_bits: bool
    tried: bool = False


HOPPER = Architecture("9.0", 227 * 1024, multiplies_bits=True, tried=True)
_ALL = (
    Architecture("8.0", 163 * 1024, multiplies_bits=True),
    Architecture("8.6", 99 * 1024, multiplies_bits=True),
    Architecture("8.9", 99 * 1024, multiplies_bits=True),
    HOPPER,
    Architecture("10.0", 227 * 1024, multiplies_bits=False),
    Architecture("12.0", 99 * 1024, multiplies_bits=False),
)
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({x.capability: x for x in _ALL})
"""Those that the kernels are assembled for, by capability."""


def architecture_here() -> Architecture | None:
    """The default device's; Hopper's where there is no GPU, None for another generation's GPU."""
    capability = getattr(jax.devices()[0], "compute_capability", HOPPER.capability)
    return ARCHITECTURES.get(str(capability))
