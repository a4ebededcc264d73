"""Files appear whole, at their place, or not at all; what is no file is never replaced."""

import os
import stat

import jax.numpy as jnp
import pytest

import vkq_jax
from vkq_jax.files.atomic_write import atomic_write, check_writable


def write(path, text="new"):
    with atomic_write(path) as part:
        part.write_text(text)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_has_the_mode_that_open_gives(tmp_path, umask):
    write(tmp_path / "new" / "file")
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o640
    (tmp_path / "new" / "file").chmod(0o604)
    write(tmp_path / "new" / "file")
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o604
    vkq_jax.save_score_map(tmp_path / "map", vkq_jax.ScoreMap(jnp.ones((1, 1)), jnp.ones((1, 1))))
    assert stat.S_IMODE((tmp_path / "map").stat().st_mode) == 0o640


def test_a_link_stays_and_its_target_is_written(tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("not there yet", "there"):
        write(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_what_fails_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "file"
    write(path, "old")

    def interrupted():
        with atomic_write(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder: expected a regular file"),
        ("pipe", "pipe: expected a regular file"),
        ("link", "link: expected a regular file"),
        ("file/below", "file/below: expected a folder that can be written to, got .*/file$"),
        ("circle", "circle: expected a place that can be written to, got .*/circle, a link that"),
        ("circle/new", "circle/new: expected a place that can be .*/circle, a link that leads in"),
        ("closed/new", "closed/new: expected a folder that can be written to, got .*/closed$"),
    ],
)
def test_what_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    # Tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "closed")
    before = {path: path.lstat().st_mode for path in tmp_path.iterdir()}
    for call in (check_writable, write):
        with pytest.raises(ValueError, match=message):
            call(tmp_path / name)
    assert {path: path.lstat().st_mode for path in tmp_path.iterdir()} == before
