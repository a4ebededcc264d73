"""The files under results/."""

import json
import pathlib
from typing import Any

RESULTS = pathlib.Path(__file__).parents[2] / "results"


def read(name: str) -> dict[str, Any]:
    """A file of results."""
    return json.loads((RESULTS / name).read_text())
