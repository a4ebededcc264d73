"""VipLLaVA: LLaVA with features of several layers of the vision tower, normed together."""
