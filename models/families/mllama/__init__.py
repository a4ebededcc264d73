"""Mllama (Llama 3.2 Vision): a Llama that reads tiles of pictures in cross-attention layers."""
