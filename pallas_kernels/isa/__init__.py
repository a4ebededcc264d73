"""The instructions that a body is written in, their backends, and what is made of them."""
