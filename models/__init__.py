"""vkq-jax."""
