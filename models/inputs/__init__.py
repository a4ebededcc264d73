"""Prompts and pictures, from text and files to checked arrays."""
