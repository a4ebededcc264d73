"""Attention over a cache: the oracle, the post-scaled form, the weights."""
