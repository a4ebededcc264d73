"""The KV cache: banks of coded images and of text, layers and heads of several kinds."""
