import numpy as np
import pytest
from PIL import Image

from vkq_apps.bench import worker


@pytest.fixture
def calls(monkeypatch):
    """Workers run in this process; gives the settings they were called with."""
    made = []

    def call(task, settings, *, compile_cache=None):
        made.append((task, settings))
        return worker.TASKS[task](**settings)

    monkeypatch.setattr(worker, "call", call)
    return made


@pytest.fixture
def picture(tmp_path):
    """The name of a file with a grey picture."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(path)
    return str(path)
