"""Qwen-VL: a tower over pictures of any size, a patch merger, and a decoder with M-RoPE."""
