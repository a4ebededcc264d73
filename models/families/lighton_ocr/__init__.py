"""LightOnOCR: Pixtral's tower and projector before Qwen3."""
