"""Random tiny models of every family, each found again by its number."""

from tests.support.draws import any_grids, apart, fixed_grids, tiles

__all__ = ["DRAWS"]

DRAWS = {**fixed_grids.DRAWS, **tiles.DRAWS, **any_grids.DRAWS, **apart.DRAWS}
"""By model_type: what draws a model and its batch."""
