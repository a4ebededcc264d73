"""Rendering processes: they hear no Ctrl-C, and what a killed trainer leaves is removed."""

import os
import signal

import pytest

from vkq_apps.training import rendering
from vkq_apps.training.rendering import Renderers
from vkq_jax.files.atomic_write import part_folder


def renderers(workers):
    return Renderers(workers, chunk_size=1, slots=2, seed="0", difficulty=0.5)


def test_files_of_a_killed_trainer_are_removed_and_ones_own(monkeypatch, tmp_path):
    monkeypatch.setattr(rendering, "_memory_folder", lambda needed: tmp_path)
    with part_folder(tmp_path / "vkq-chunks") as living:
        killed = tmp_path / f"{living.name[:-8]}killed00"
        killed.mkdir()
        with renderers(0):
            (own,) = set(tmp_path.iterdir()) - {living}
            assert own != killed
            assert list(own.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
def test_processes_hear_no_ctrl_c_and_their_death_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(rendering, "_memory_folder", lambda needed: tmp_path)
    with renderers(2) as pool:
        first, second = pool._processes
        for process in pool._processes:  # in their imports
            os.kill(process.pid, signal.SIGINT)
        assert _take(pool) == (1, 336, 336, 3)
        os.kill(first.pid, signal.SIGINT)
        assert _take(pool) == (1, 336, 336, 3)
        assert first.is_alive()
        for process in (first, second):
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        with pytest.raises(ChildProcessError, match="a rendering process ended with code -9"):
            _ = [_take(pool) for _ in range(3)]  # two slots may have been full
    assert not list(tmp_path.iterdir())


def _take(pool):
    """The shape of the pictures of the next chunk."""
    for _ in range(120):
        shape = pool.take(lambda chunk: chunk.images.shape, timeout=1.0)
        if shape is not None:
            return shape
    raise TimeoutError
