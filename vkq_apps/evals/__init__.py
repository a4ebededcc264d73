"""`vkq eval`: the effect of coding the visual cache on a model's answers."""
