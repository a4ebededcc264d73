"""The option `--implementation` as the libraries take it."""

import pallas_kernels

__all__ = ["implementation_of", "layers_apart_with"]


def implementation_of(name: str) -> str | None:
    """The name as the libraries take it: None for the default."""
    if name == "auto":
        return None
    if name not in pallas_kernels.IMPLEMENTATIONS:
        known = ", ".join(pallas_kernels.IMPLEMENTATIONS)
        raise ValueError(f"implementation must be auto, {known}, got {name!r}")
    return name


def layers_apart_with(implementation: str | None) -> bool | None:
    """`layers_apart` of `models.load`: XLA takes stacks of layers, which compile faster."""
    return False if implementation == "xla" else None
