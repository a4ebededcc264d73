"""`vkq eval`: what coding the visual cache does to a model's answers."""
