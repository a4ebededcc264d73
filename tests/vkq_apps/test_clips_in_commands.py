"""`vkq inspect` and `vkq calibrate` of clips."""

import json
import shutil

import pytest
from PIL import Image

import models
from models import Clip
from tests.support.clip_cases import CASES, clip, stand_in, write_files
from tests.support.random_checkpoint import write_random_checkpoint
from vkq_apps.cli.main import main
from vkq_apps.cli.sample_folder import CLIP_PROMPTS, PROMPTS, asked, read_folder
from vkq_apps.terminal.sample_prompts import batches_of

CASE = CASES["llava_onevision: a picture between two clips"]
OF_CLIP, OF_PICTURE = 2 * 4 + 1, 9 + 15  # two frames of 2 x 2; a tile and newlines behind rows


@pytest.fixture
def folder(tmp_path):
    """An animated picture, a picture, and a file that is neither."""
    folder = tmp_path / "folder"
    folder.mkdir()
    frames = [Image.fromarray(frame) for frame in clip(2, 8, 10)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=20)
    frames[0].save(folder / "b.png")
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_holds_clips_for_models_that_take_them(folder, tmp_path):
    (folder / "c.mkv").touch()
    model = stand_in(tmp_path / "model", CASE)
    gif, picture, film = (folder / name for name in ("a.gif", "b.png", "c.mkv"))
    visuals = read_folder(folder, model.config)
    assert visuals == [Clip(gif), picture, Clip(film)]
    pairs = asked(visuals, None)
    assert [question for _, question in pairs] == [CLIP_PROMPTS[0], PROMPTS[0], CLIP_PROMPTS[1]]
    assert [question for _, question in asked(visuals, ["q", "r"])] == ["q", "q", "r"]
    pairs = [(Clip(gif), "<video>"), (picture, "<image>"), (picture, "<image>")]
    mixed, pictures = batches_of(model, pairs, 2, num_frames=2)
    assert mixed.visual_mask.sum(-1).tolist() == [OF_CLIP, OF_PICTURE]
    assert pictures.visual_mask.sum(-1).tolist() == [OF_PICTURE]


def test_a_folder_holds_no_clips_for_models_of_pictures(folder, capsys):
    (folder / "c.mkv").touch()
    config = models.read_config("tiny")
    assert read_folder(folder, config) == [folder / "a.gif", folder / "b.png"]
    assert "1 video files left out: llava models take pictures alone" in capsys.readouterr().err
    for name in ("a.gif", "b.png"):
        (folder / name).unlink()
    with pytest.raises(NotImplementedError, match="llava models take pictures alone"):
        read_folder(folder, config)
    (folder / "c.mkv").unlink()
    with pytest.raises(ValueError, match=r"--images: expected pictures \(.*\) or video files in"):
        read_folder(folder, config)


@pytest.mark.ci  # compiles a whole model
def test_a_report_and_tables_of_clips(folder, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    write_files(model, CASE._replace(videos=CASE.videos | {"do_sample_frames": False}))
    write_random_checkpoint(model, CASE.config)
    (tmp_path / "questions").write_text("what ?")
    film = str(folder / "a.gif")
    shutil.copy(film, folder / "c.gif")
    records = []
    for command, *options in (
        ["inspect", "--video", film, "--prompt", "<video> what ?"],
        ["calibrate", "--images", str(folder), "--prompts", str(tmp_path / "questions")],
    ):
        asked = ["--model", str(model), "--out", str(tmp_path / command), *options]
        with pytest.raises(SystemExit) as exit_:
            main([command, *asked, "--max-new-tokens", "2", "--json"])
        assert exit_.value.code == 0
        records.append(json.loads(capsys.readouterr().out))
    inspected, calibrated = records
    assert (inspected["image"], inspected["video"]) == (None, film)
    assert inspected["visual_tokens"] == OF_CLIP
    assert "attention_mass.png" in inspected["files"]
    assert calibrated["prompts"] == 3
