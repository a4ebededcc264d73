"""Gemma 4: a tower over any grid, pooled features, a decoder of two kinds of layers."""
