"""Bits and products with them: packed words, rotations, scales in 8 bits."""
