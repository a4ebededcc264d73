"""Files and folders that are there and may not be read: that is said, not that they are missing."""

import pytest

import models
import vkq_jax
from models.checkpoints.folder import Checkpoint
from models.inputs.images import missing_file
from vkq_jax.validation import check_readable


def refuse(*_, **__):
    raise PermissionError


def test_what_may_not_be_read_is_not_said_to_be_missing(monkeypatch, tmp_path, one_clear_error):
    file, missing = tmp_path / "model.safetensors", tmp_path / "missing"
    file.write_bytes(b"x")
    check_readable(file)
    check_readable("\0")  # callers name what cannot be a path
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything
    check_readable(missing)
    reads = {
        check_readable: file,
        vkq_jax.load_cache: file,
        Checkpoint: tmp_path,
        models.read_config: tmp_path,
        lambda path: missing_file("image file", path): file,
    }
    for read, path in reads.items():
        with pytest.raises(ValueError, match="cannot be read: Permission denied") as caught:
            read(path)
        one_clear_error(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr("os.stat", refuse)  # a folder above it may not be entered
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        check_readable(file)
