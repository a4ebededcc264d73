"""A pipe takes the place of a file after it was checked: an error, not a wait for a writer."""

import os
import signal
from pathlib import Path

import pytest

import vkq_jax
from models.calibration.folder import CalibrationFolder
from models.checkpoints.folder import Checkpoint
from models.checkpoints.hf_settings import read_json
from models.inputs.clips import Clip, is_clip_file, read_clip
from models.inputs.images import read_picture
from models.prompts.processor import _chat_template

READERS = {
    "json": read_json,
    "picture": read_picture,
    "clip": lambda path: read_clip(Clip(path), lambda total, fps: range(total)),
    "cache": vkq_jax.load_cache,
    "tables": vkq_jax.load_tables,
    "weights": lambda path: Checkpoint(path.parent),
    "samples": lambda path: CalibrationFolder(path.parent).samples("0", tuple),
    "template": lambda path: _chat_template(path.parent, {}),
}
NAMES = {
    "weights": "model.safetensors",
    "samples": "samples-0.safetensors",
    "template": "chat_template.jinja",
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Five seconds a test, and checks that take a pipe for a file: it was one when they looked."""

    def waited(*_):
        raise TimeoutError("it waits for a writer")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(5)
    monkeypatch.setattr(os.path, "isfile", lambda path: True)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_in_the_place_of_a_file_is_one_clear_error(tmp_path, one_clear_error, kind):
    path = tmp_path / NAMES.get(kind, "file")
    os.mkfifo(path)
    with pytest.raises(ValueError, match="expected a file, got a folder, a pipe, a") as caught:
        READERS[kind](path)
    one_clear_error(caught.value)


def test_a_pipe_among_pictures_is_no_clip(tmp_path):
    path = tmp_path / "frame.png"
    os.mkfifo(path)
    assert not is_clip_file(path)


def test_no_descriptor_stays_open(tmp_path):
    path = tmp_path / "file"
    os.mkfifo(path)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(ValueError, match="expected a file"):
            read_json(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)
