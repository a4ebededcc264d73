"""Checkpoint folders of Hugging Face: files, settings and weights."""
