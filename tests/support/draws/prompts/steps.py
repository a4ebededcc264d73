"""Random settings that all image processors share."""

import random
from typing import Any

__all__ = ["steps"]


def steps(rng: random.Random, *, rim: bool = False) -> dict[str, Any]:
    """Means, scales and filters; a setting may be missing, or off.

    Where the mean is the color of a `rim`, means are rescaled.
    """
    found: dict[str, Any] = {}
    if rng.random() < 0.6:
        found["image_mean"] = [round(rng.uniform(0.2, 0.7), 3) for _ in range(3)]
        found["image_std"] = [round(rng.uniform(0.2, 0.7), 3) for _ in range(3)]
    if rng.random() < 0.3:
        found["rescale_factor"] = rng.choice((1 / 127.5, 0.003, 1 / 256))
    if rng.random() < 0.5:
        found["resample"] = rng.choice((0, 1, 2, 3, 4, 5))
    switch = rng.random()
    if switch < 0.15:
        found["do_normalize"] = False
    elif switch < 0.3 and not rim:
        found |= {"do_rescale": False, "image_mean": [120.0, 110.0, 130.0]}
        found["image_std"] = [60.0, 70.0, 65.5]
    if rng.random() < 0.3:
        found["do_convert_rgb"] = rng.choice((True, False))
    return found
