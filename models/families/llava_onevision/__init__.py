"""LLaVA-OneVision: LLaVA-NeXT with fewer tokens for large pictures, several pictures, clips."""
