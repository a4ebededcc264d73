"""DeepSeek-VL: SigLIP, a two-layer projector, a LLaMA decoder; pictures keep their shapes."""
