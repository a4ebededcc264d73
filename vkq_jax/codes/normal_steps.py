"""Uniform grids of least squared error for a normal distribution."""

__all__ = ["NORMAL_STEPS"]

NORMAL_STEPS = (0.0, 1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
"""Steps for N(0, 1), by bits of a code (Max 1960, table II)."""
