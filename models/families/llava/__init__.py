"""LLaVA-1.5: a CLIP vision tower, a two-layer projector and a LLaMA-like text tower."""
