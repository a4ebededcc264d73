"""The embedded checkpoint's recipe: pictures out of a seed, tokenizer, training, export."""
