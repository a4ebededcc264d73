"""Idefics3 and SmolVLM: tiles of a picture and the whole, merged features, Llama's decoder."""
