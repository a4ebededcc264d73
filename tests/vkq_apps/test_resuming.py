"""`--resume` goes on from the command's own folder, of the same settings, and from no other."""

import contextlib
import json

import pytest

from vkq_apps.files.resuming import check_part_folder, check_settings, kept_parts, part_of

COMMAND = "vkq calibrate"
SETTINGS = {"seed": 0, "quant": ("a", "b"), "mesh": None}


def stopped(out, settings=SETTINGS):
    """Leaves the folder of a run that was stopped, with one part."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        kept_parts(out, COMMAND, settings, resume=False) as part,
    ):
        (part / "done").touch()
        raise KeyboardInterrupt


def test_parts_outlast_a_stop_and_go_once_all_is_done(tmp_path):
    out = tmp_path / "new" / "tables"
    stopped(out)
    with kept_parts(out, COMMAND, SETTINGS, resume=True) as part:
        assert (part / "done").exists()
    assert not part.exists()
    stopped(out)
    with kept_parts(out, COMMAND, SETTINGS, resume=False) as part:
        assert not (part / "done").exists()
    with kept_parts(out, COMMAND, SETTINGS, resume=True):  # nothing was left
        pass
    assert list(out.parent.iterdir()) == []


def test_a_kill_while_parts_are_removed_leaves_a_folder_that_is_known(tmp_path, monkeypatch):
    out = tmp_path / "tables"
    stopped(out)
    part = part_of(out)

    def killed(path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt), kept_parts(out, COMMAND, SETTINGS, resume=True):
        pass
    monkeypatch.undo()
    assert [path.name for path in part.iterdir()] == ["settings.json"]
    with kept_parts(out, COMMAND, SETTINGS, resume=True):
        pass
    assert not part.exists()


def test_changed_settings_are_refused_by_name_and_lose_nothing(tmp_path):
    out = tmp_path / "tables"
    stopped(out)
    message = r"--resume: .*tables\.part was made with other settings: seed is '0' there and '1'"
    with (
        pytest.raises(ValueError, match=message),
        kept_parts(out, COMMAND, SETTINGS | {"seed": 1}, resume=True),
    ):
        pass
    assert (part_of(out) / "done").exists()
    with pytest.raises(ValueError, match="mesh is 'None' there and 'data=2' here"):
        check_settings(out, SETTINGS | {"quant": ["a", "b"]}, SETTINGS | {"mesh": "data=2"})


def link(part):
    part.parent.joinpath("elsewhere").mkdir()
    part.symlink_to("elsewhere")


def folder_with(**files):
    def make(part):
        part.mkdir()
        for name, text in files.items():
            (part / f"{name}.json").write_text(text)

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda part: part.touch(),
        link,
        lambda part: part.symlink_to("nowhere"),
        folder_with(thesis="{}"),
        folder_with(settings="[]"),
        folder_with(settings="[" * 9999),
        folder_with(settings="no JSON"),
        folder_with(settings=json.dumps({"command": "other"}), thesis=""),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_others_is_neither_used_nor_removed(tmp_path, make, resume):
    out = tmp_path / "tables"
    make(part_of(out))
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(ValueError, match=r"tables\.part exists and was not made by `vkq calibrate`"),
        kept_parts(out, COMMAND, SETTINGS, resume=resume),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_kill_before_the_settings_were_written_is_no_obstacle(tmp_path):
    out = tmp_path / "tables"
    (part_of(out) / ".part-0123-xyz").mkdir(parents=True)
    assert check_part_folder(out, COMMAND) is None
    with kept_parts(out, COMMAND, SETTINGS, resume=True):
        pass
    assert list(tmp_path.iterdir()) == []
