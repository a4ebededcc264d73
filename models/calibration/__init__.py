"""Score maps and code tables from a model's own answers."""
