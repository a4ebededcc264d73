"""Kinds of decoder layers, as `layer_types` in config.json names them."""

__all__ = ["FULL", "LINEAR", "SLIDING", "every_nth_full"]

FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = "linear_attention"


def every_nth_full(num_layers: int, n: int, others: str = SLIDING) -> tuple[str, ...]:
    """The kind of each layer where every `n`-th, the `n`-th first, sees all tokens."""
    return tuple(others if number % n else FULL for number in range(1, num_layers + 1))
