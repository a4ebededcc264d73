"""The pytree that a model reads, and the arrays in it. No file here knows a family."""
