import pytest

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
