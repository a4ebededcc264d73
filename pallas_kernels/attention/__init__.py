"""Decode attention by the fused kernel: contract, operands, launch."""
