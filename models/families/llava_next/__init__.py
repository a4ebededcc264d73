"""LLaVA-NeXT (LLaVA-1.6): a picture as a whole and in tiles, with a newline behind each row."""
