"""Axis letters and array annotations: the one vocabulary of shapes used in this project.

| letter | axis |
|---|---|
| B | batch |
| T | query positions |
| S | cached text positions (capacity) |
| V | cached visual positions (capacity) |
| N | query heads |
| K | key/value heads |
| H | head_dim |
| G | groups along V |
| R | runs of channels of one position |
| W | packed words |
| L | layers |

`*lead` stands for any leading axes, usually `B K` or `L B K`.
"""

from jax import Array
from jaxtyping import Bool, Float, Int8, Int32, Shaped, UInt8, UInt32

__all__ = ["Array", "Bool", "Float", "Int8", "Int32", "Shaped", "UInt8", "UInt32"]
