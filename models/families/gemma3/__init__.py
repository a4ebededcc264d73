"""Gemma 3: SigLIP, pooled features, a Gemma 3 decoder whose image tokens see each other."""
