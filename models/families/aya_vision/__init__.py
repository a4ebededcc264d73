"""Aya Vision: tiles, a gated projector, Cohere's parallel blocks."""
