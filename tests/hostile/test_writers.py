"""Writers that are killed, overtaken, or out of space: files are whole, nothing is left."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.support.killed_writers import WRITERS
from vkq_jax.files.atomic_write import atomic_write, check_writable, lock, part_folder, reserved


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of `tests.support.killed_writers`."""
    command = [sys.executable, "-m", "tests.support.killed_writers", tmp_path_factory.mktemp("k")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_at_any_step_leaves_whole_files_and_the_next_write_cleans_up(record, name):
    assert record[name]["steps"] > 10
    assert record[name]["problems"] == []


def test_a_live_writer_keeps_its_part(record, tmp_path):
    assert record["overtake_a_live_writer"] == []
    path = tmp_path / "file"  # and within one process
    with atomic_write(path) as first:
        first.write_text("first")
        check_writable(path)
        with atomic_write(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reserved_place_is_one_processs_own(tmp_path):
    path = tmp_path / "new" / "file"
    with reserved(path):
        with atomic_write(path) as part:  # its holder writes as often as it likes
            part.write_text("first")
        with pytest.raises(ValueError, match="is being written by another process"), reserved(path):
            pass
        with reserved(path.with_name("other")):
            pass
    with reserved(path):
        assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["link to nowhere", "link", "file"])
def test_what_is_no_folder_reserves_nothing(tmp_path, one_clear_error, kind):
    path = tmp_path / "file"
    with reserved(path):
        (held,) = tmp_path.iterdir()
    if kind == "file":
        held.touch()
    else:
        held.symlink_to(tmp_path if kind == "link" else "nowhere")
    with pytest.raises(ValueError, match="cannot be reserved: ") as caught, reserved(path):
        pass
    one_clear_error(caught.value)
    assert list(tmp_path.iterdir()) == [held]


@pytest.mark.parametrize("again", [False, True])
def test_a_reservation_that_ends_while_another_begins_is_no_ones_twice(
    tmp_path, monkeypatch, again
):
    """The last holder takes its folder away, or a third one makes it anew, before it is locked."""
    taken = []

    def late(descriptor):
        held = list(tmp_path.glob("*-held"))
        if held and not taken:
            taken.extend(held)
            shutil.rmtree(held[0])
            if again:
                held[0].mkdir()
        lock(descriptor)

    monkeypatch.setattr("vkq_jax.files.atomic_write.lock", late)
    path = tmp_path / "file"
    with reserved(path):
        assert taken
        with pytest.raises(ValueError, match="is being written by another process"), reserved(path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_changes_nothing(record):
    messages = record["fill_the_disk"]
    assert len(messages) == len(WRITERS)
    for message in messages:
        assert "cannot be written: " in message
        assert "File too large" in message


def test_folders_of_other_targets_and_of_others_stay(tmp_path):
    with part_folder(tmp_path / "other") as killed:
        (killed / "x").touch()
        shutil.copytree(killed, tmp_path / ".part-other-killed")
    (tmp_path / ".part-photos").mkdir()
    before = set(tmp_path.iterdir())
    with atomic_write(tmp_path / "file") as part:
        part.write_text("text")
    assert set(tmp_path.iterdir()) == {*before, tmp_path / "file"}


def test_kills_at_random_moments(cases, tmp_path):
    """The steps above are those that Python sees; a kill falls anywhere."""
    program = (
        "import sys, numpy, pathlib; from vkq_apps.training.checkpointing import save\n"
        "for i in range(10**6):\n"
        "    save(pathlib.Path(sys.argv[1]), {'a': numpy.full(10**6, i)}, {'step': i})\n"
        "    print(i, flush=True)"
    )
    path = tmp_path / "state"
    for case in cases(1):
        command = [sys.executable, "-c", program, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "0\n"
            time.sleep(0.2 * random.Random(f"writers/{case}").random())
            process.send_signal(signal.SIGKILL)
            written = process.stdout.read().splitlines()
        read = WRITERS["training"][1](path)
        assert read in (int(written[-1]) + i for i in (0, 1)) if written else read in (0, 1)
    WRITERS["training"][0](path, 7)
    assert list(tmp_path.iterdir()) == [path]
