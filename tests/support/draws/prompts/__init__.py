"""Random processors, prompts and pictures for the models of `tests.support.draws`."""

from tests.support.draws.prompts.grids import GRIDS
from tests.support.draws.prompts.squares import SQUARES

__all__ = ["SERVED"]

SERVED = {**SQUARES, **GRIDS}
