"""LLaVA-NeXT-Video: LLaVA-NeXT and clips, whose frames are pooled before the projector."""
