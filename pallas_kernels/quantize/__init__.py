"""Coding of a layer in prefill: in XLA, or by a fused kernel in attention's layout."""
