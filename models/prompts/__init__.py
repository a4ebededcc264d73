"""Prompts, pictures and clips, by a checkpoint's own processor, to `models.inputs.Inputs`."""
