"""A pass through a model's layers, of a prompt and of one token."""
