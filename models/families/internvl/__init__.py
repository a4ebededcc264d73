"""InternVL 2.5, 3 and 3.5: InternViT over tiles of a picture, merged features, any text decoder."""
