"""Numbers in fixed point, by way of a float's own bits."""

__all__ = ["TO_INT", "TO_INT_BITS"]

TO_INT = 2.0**23  # added to a float below 2^22, it rounds it and leaves the integer in its bits
TO_INT_BITS = 0x4B000000
