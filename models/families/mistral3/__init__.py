"""Mistral Small 3 and Pixtral: a tower over pictures of any size and Mistral's decoders."""
