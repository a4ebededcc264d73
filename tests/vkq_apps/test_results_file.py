"""Where records go: checked before anything is measured, never in place of what is no file."""

import json
import os

import pytest

from vkq_apps.files.results_file import ResultsFile, write_json

HEAD = {"command": "vkq bench x", "device": "d", "commit": "c", "time": "t"}


def test_a_record_is_written_through_a_link_into_a_new_folder(tmp_path):
    (tmp_path / "link.json").symlink_to("new/rows.json")
    ResultsFile(tmp_path / "link.json", HEAD).add({"status": "measured"})
    assert (tmp_path / "link.json").is_symlink()
    (row,) = json.loads((tmp_path / "new" / "rows.json").read_text())["rows"]
    assert row["status"] == "measured"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["folder", "pipe"])
def test_what_is_no_file_is_one_clear_error_before_any_work(tmp_path, name, resume):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=f"{name}: expected a regular file"):
        ResultsFile(tmp_path / name, HEAD, resume=resume)
    with pytest.raises(ValueError, match=f"{name}: expected a regular file"):
        write_json(tmp_path / name, HEAD)
    assert (tmp_path / "folder").is_dir()
    assert (tmp_path / "pipe").is_fifo()
