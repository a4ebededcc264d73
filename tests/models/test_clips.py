"""Clips: as transformers' processors make them (tests/goldens/clips.npz), where they come from."""

import dataclasses
import io
import json
import struct
import sys

import av
import jax
import numpy as np
import pytest
from PIL import Image

import models
from models.inputs.clip_processing import _crop
from models.inputs.clips import group_clips, read_clip
from models.inputs.video_files import open_video
from tests.goldens.clips import FILE
from tests.support.clip_cases import CASES, clip, stand_in, write_files
from tests.support.random_checkpoint import write_random_checkpoint
from vkq_apps.cli.main import main
from vkq_apps.evals.batches import in_batches, prepare
from vkq_apps.evals.datasets import read_data
from vkq_apps.evals.samples import exchange_pictures

LEVEL = 1 / 255


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    made = {}

    def get(title):
        if title not in made:
            made[title] = stand_in(tmp_path_factory.mktemp("clips"), CASES[title])
        return made[title]

    return get


@pytest.mark.parametrize("title", CASES)
def test_clips_come_out_as_of_transformers(model_of, title):
    """Ids, grids and positions are equal, and most levels; the rest differ by two of 255."""
    case, model = CASES[title], model_of(title)
    with np.load(FILE) as file:
        golden = {key.split("/")[1]: file[key] for key in file if key.startswith(f"{title}/")}
    got = models.prepare(
        model,
        prompts=case.prompt,
        images=[clip(1, *size)[0] for size in case.pictures] or None,
        videos=[models.Clip(clip(*shape), fps) for *shape, fps in case.clips],
    )
    np.testing.assert_array_equal(got.input_ids, golden["input_ids"])
    expected = models.prepare(model, **golden)
    jax.tree.map(np.testing.assert_array_equal, got.vision_layout, expected.vision_layout)
    np.testing.assert_array_equal(got.positions, expected.positions)
    widest = 2 * LEVEL / 0.26  # by the least image_std
    differences = np.abs(np.asarray(got.pixel_values) - expected.pixel_values)
    assert differences.max() < widest
    assert (differences < 1e-5).mean() > 0.7


FRAMES = clip(12, 8, 10)


def write_film(path, frames, fps, codec, pixels="yuv420p", **settings):
    """A video file; `ffv1` keeps all levels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def frames_of(videos, choose=lambda total, fps: range(total), fps=None):
    return read_clip(models.Clip(videos, fps), choose)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same twelve frames in files of 20 ms each, and in a folder without leading zeros."""
    folder = tmp_path_factory.mktemp("files")
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})):
        pictures[0].save(
            folder / name, save_all=True, append_images=pictures[1:], duration=20, **options
        )
    write_film(folder / "a.mkv", FRAMES, fps=50, codec="ffv1", pixels="bgr0")
    (folder / "frames").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / "frames" / f"frame{number}.png")
    (folder / "frames" / ".hidden").write_text("")
    (folder / "empty").mkdir()
    return folder


def test_frames_of_every_kind_of_clip_are_the_same(files):
    sources = {
        "array": (FRAMES, None),
        "list": ([Image.fromarray(frame) for frame in FRAMES], None),
        "frames": (files / "frames", None),
        "a.webp": (str(files / "a.webp"), 50.0),
        "a.png": (files / "a.png", 50.0),
        "a.gif": (files / "a.gif", 50.0),
        "a.mkv": (files / "a.mkv", 50.0),
    }
    for name, (videos, fps) in sources.items():
        got = frames_of(videos, choose=lambda total, fps: [1, total - 1])
        assert (got.total, got.fps, got.indices) == (12, fps, [1, 11])
        levels = np.stack([np.asarray(frame) for frame in got.frames]).astype(int)
        # A GIF has 256 colours a frame.
        assert np.abs(levels - FRAMES[[1, 11]]).max() <= (40 if name == "a.gif" else 0)
    assert frames_of(files / "a.gif", fps=3).fps == 3


def test_clips_are_grouped_by_prompt(files):
    picture, path = Image.fromarray(FRAMES[0]), str(files / "a.gif")
    one = models.Clip(path, 2.0)

    def counts(videos, prompts, single):
        return [len(clips) for clips in group_clips(videos, prompts, single=single)]

    for videos in (FRAMES, path, one, [picture] * 3, [path, path], list(FRAMES)):
        assert counts(videos, ["a"], True) == [1]
    for videos in ([FRAMES, one], [[picture] * 2, [path]], (one, files / "frames")):
        assert counts(videos, ["a"], True) == [2]
    assert counts([path, None, [one, FRAMES], [picture]], list("abcd"), False) == [1, 0, 2, 1]
    assert counts(None, ["a", "b"], False) == [0, 0]


@pytest.mark.parametrize(
    ("videos", "error", "words"),
    [
        ("missing.gif", FileNotFoundError, "does not exist"),
        ("empty", ValueError, "has no frames"),
        ("broken.mp4", ValueError, "cannot read video broken.mp4: Invalid data"),
        ("empty.mkv", ValueError, "without any"),
        ("broken.gif", ValueError, "cannot read video"),
        (FRAMES[:0], ValueError, "without any"),
        (FRAMES.astype(float), ValueError, "frame 0: image: expected uint8"),
        ([FRAMES[0], FRAMES[1, :4]], ValueError, "frames of one size, got 10 x 8 and 10 x 4"),
        (5, ValueError, "expected uint8"),
        ([], ValueError, "expected uint8"),
        ([FRAMES, 5], ValueError, "expected uint8"),
        (FRAMES[None], ValueError, "expected uint8"),
        (["a.gif", "a.gif"], ValueError, "is a clip of its own"),
        ([FRAMES, FRAMES], ValueError, "2 videos and 1 video token "),
        (None, ValueError, "0 videos and 1 video token "),
    ],
)
def test_what_is_no_clip_is_refused(model_of, files, monkeypatch, videos, error, words):
    monkeypatch.chdir(files)
    (files / "broken.mp4").write_bytes(b"\0")
    (files / "empty.mkv").write_bytes((files / "a.mkv").read_bytes()[:600])
    (files / "broken.gif").write_bytes(b"GIF89a")
    model = model_of("qwen3_vl: times between the frames")
    with pytest.raises(error) as caught:
        models.prepare(model, prompts="<video> a", videos=videos)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mpg"])
def test_frames_of_films_are_those_that_transformers_reads(tmp_path, name):
    """Key frames and ones that refer to later ones; MPEG's key frames are not found by time."""
    from transformers.video_utils import read_video_pyav

    codec = {"a.mp4": "mpeg4", "a.webm": "libvpx", "a.mpg": "mpeg2video"}[name]
    later = {} if codec == "libvpx" else {"max_b_frames": 2}
    write_film(tmp_path / name, clip(40, 16, 16), 25, codec, gop_size=6, **later)
    expected, metadata = read_video_pyav(str(tmp_path / name), lambda metadata: list(range(40)))
    for chosen in (range(40), [0, 0, 17, 18, 39], [5], [39], [1, 23]):
        got = frames_of(tmp_path / name, choose=lambda total, fps, chosen=chosen: chosen)
        assert (got.total, got.fps) == (40, metadata.fps)
        np.testing.assert_array_equal(np.stack(got.frames), expected[list(chosen)])


def test_a_film_of_a_telephone_is_turned_upright(tmp_path):
    """It lies on its side in the file, whose header has the matrix that turns it."""
    write_film(tmp_path / "a.mov", clip(2, 16, 32), 25, "mpeg4")
    (lying,) = frames_of(tmp_path / "a.mov", choose=lambda total, fps: [1]).frames
    content = (tmp_path / "a.mov").read_bytes()
    start = content.index(b"tkhd") + 44
    for entries, turns in (((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)):
        a, b, c, d = (entry << 16 for entry in entries)
        matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        turned = tmp_path / "turned.mov"
        turned.write_bytes(content[:start] + matrix + content[start + len(matrix) :])
        (upright,) = frames_of(turned, choose=lambda total, fps: [1]).frames
        np.testing.assert_array_equal(upright, np.rot90(lying, turns))


def test_films_need_an_extra(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        frames_of(files / "a.mkv")
    assert 'a.mkv: expected PyAV, which decodes video files: pip install "vkq-jax[video]"' in str(
        caught.value
    )
    assert len(str(caught.value)) < 400


def test_a_film_that_is_cut_off_ends_in_one_error(tmp_path):
    write_film(tmp_path / "a.webm", clip(40, 16, 16), 25, "libvpx", gop_size=6)
    whole = (tmp_path / "a.webm").read_bytes()
    (tmp_path / "a.webm").write_bytes(whole[: len(whole) // 2])
    assert 0 < frames_of(tmp_path / "a.webm").total < 40
    video = open_video(tmp_path / "a.webm")
    damaged = dataclasses.replace(video, times=(*video.times, video.times[-1] + 1))
    with pytest.raises(ValueError, match=r"a.webm: frame \d+ of \d+ cannot be decoded"):
        list(damaged.read([len(video.times)]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_frames": 13}, "at least num_frames=13 frames, got 12"),
        ({"num_frames": 1, "videos": None, "prompts": "a"}, "num_frames=1: expected videos"),
        ({"num_frames": [2, 2]}, "one number, or one for each of 1 prompts, got 2"),
        ({"num_frames": [2], "videos": None, "prompts": ["a"]}, "videos of prompt 0, got none"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 2.5}, "num_frames"),
        ({"videos": models.Clip(FRAMES[:1], 1.0)}, "at least 2 frames, got 1"),
        ({"videos": FRAMES[:, :, :1].repeat(3000, 1)}, "too long and narrow"),
    ],
)
def test_frames_that_a_clip_does_not_have_are_refused(model_of, options, words):
    model = model_of("qwen3_vl: times between the frames")
    with pytest.raises(ValueError, match=words):
        models.prepare(model, **{"prompts": "<video> a", "videos": FRAMES, **options})


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_a_rate_is_a_number_above_zero(fps):
    with pytest.raises(ValueError, match="fps: expected frames per second above 0"):
        models.Clip(FRAMES, fps)


def test_num_frames_are_taken_of_each_clip(model_of):
    """Clips differ in length and size, and one prompt of the batch has none."""
    title = "llava_onevision: a picture between two clips"
    inputs = models.prepare(
        model_of(title),
        prompts=["<video> a <video>", "b", "<video>"],
        videos=[[FRAMES, FRAMES[:5]], None, clip(4, 30, 7)],
        num_frames=4,
    )
    assert inputs.visual_mask.sum(-1).tolist() == [2 * (4 * 4 + 1), 0, 4 * 4 + 1]
    own = models.prepare(
        model_of(title),
        prompts=["<video> a <video>", "b", "<video>"],
        videos=[[FRAMES, FRAMES[:5]], None, clip(4, 30, 7)],
        num_frames=[4, None, 2],
    )
    assert own.visual_mask.sum(-1).tolist() == [2 * (4 * 4 + 1), 0, 2 * 4 + 1]
    with pytest.raises(NotImplementedError, match="llava models take pictures alone"):
        models.prepare(models.load("tiny"), prompts="<image>", videos=FRAMES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": {"height": 13, "width": 12}}, "size: expected height and width 12"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"image_mean": [0.5]}, "image_mean: expected 3 numbers"),
        ({"fps": -2}, "fps"),
        ({"num_frames": None, "fps": 2}, "does not say its own rate"),
    ],
)
def test_settings_of_clips_that_cannot_be_are_refused(tmp_path, changes, words):
    title = "llava_onevision: a picture between two clips"
    case = CASES[title]._replace(videos=CASES[title].videos | changes)
    with pytest.raises(ValueError, match=words):
        models.prepare(stand_in(tmp_path, case), prompts="<video>", videos=FRAMES)


def test_an_evaluation_asks_about_clips_and_pictures(model_of, files):
    records = [{"video": "a.mkv"}, {"images": ["frames/frame1.png"]}]
    records.append({"video": "frames", "image": "frames/frame2.png"})
    lines = [json.dumps({"question": "q", "answer": "a"} | record) for record in records]
    (files / "own.jsonl").write_text("\n".join(lines))
    task = read_data([f"jsonl={files / 'own.jsonl'}"])["own"]
    (batch,) = in_batches(task, task.choose(9, 0), size=4)
    model = model_of("llava_onevision: a picture between two clips")
    prepared = prepare(model, batch, steps=2)
    clip, picture = 3 * 4 + 1, 9 + 15  # a tile of 3 x 3, and newlines behind 3 rows of 4
    assert prepared.pictures.visual_mask.sum(-1).tolist() == [clip, picture, picture + clip, clip]
    control, *_ = exchange_pictures(batch.samples)
    assert (control.clips, control.num_pictures) == ((), 1)
    (files / "own.jsonl").write_text("\n".join([lines[0], lines[0][:-1] + ', "num_frames": 2}']))
    task = read_data([f"jsonl={files / 'own.jsonl'}"])["own"]
    (batch,) = in_batches(task, task.choose(9, 0), size=2)
    fewer = prepare(model, batch, steps=2).pictures.visual_mask.sum(-1)
    assert fewer.tolist() == [clip, 2 * 4 + 1]
    (files / "own.jsonl").write_text(lines[0].replace("a.mkv", "none.mkv"))
    with pytest.raises(ValueError, match=r"expected a video file or folder .*none.mkv"):
        read_data([f"jsonl={files / 'own.jsonl'}"])


@pytest.mark.ci  # compiles a whole model
def test_clips_of_different_lengths_are_answered_in_1_bit(files, tmp_path, capsys, monkeypatch):
    """`vkq generate` about a film and a folder, in one prompt; `vkq chat` turn by turn."""
    case = CASES["llava_onevision: a picture between two clips"]
    write_files(tmp_path, case._replace(videos=case.videos | {"do_sample_frames": False}))
    write_random_checkpoint(tmp_path, case.config)
    short = tmp_path / "short.mp4"
    write_film(short, FRAMES[:2], 25, "mpeg4")
    clips = [str(short), str(files / "frames")]
    arguments = ["generate", "--model", str(tmp_path), "--prompt", "<video> a <video>"]
    arguments += [word for path in clips for word in ("--video", path)]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--max-new-tokens", "2", "--no-compare", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert exit_.value.code == 0
    assert record["visual_tokens"] == (2 + 12) * 4 + 2
    assert (record["video"], record["image"]) == (clips, None)
    lines = ["what ?", f"/video {clips[1]}", "/video /none.gif", "and then ?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    asked = ["chat", "--model", str(tmp_path), "--video", clips[0], "--json"]
    with pytest.raises(SystemExit) as exit_:
        main([*asked, "--max-new-tokens", "1"])
    first, added, error, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert exit_.value.code == 0
    assert (first["videos"], second["videos"]) == ([clips[0]], [clips[1]])
    assert added == {"video": clips[1], "waiting": 1}
    assert "/none.gif" in error["error"]
    assert [x["cache"]["visual_tokens"] for x in (first, second)] == [2 * 4 + 1, (2 + 12) * 4 + 2]


@pytest.mark.parametrize(("width", "height"), [(4, 6), (9, 3), (11, 8)])
def test_a_frame_is_cropped_and_filled_around_its_middle(width, height):
    """As torchvision's `center_crop`, which transformers takes: the odd pixel is behind."""
    pixels = np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)
    got = np.asarray(_crop(Image.fromarray(pixels), {"width": 7, "height": 7}))
    edges = [(max(0, 7 - size) // 2, (max(0, 7 - size) + 1) // 2) for size in (height, width)]
    padded = np.pad(pixels, (*edges, (0, 0)))
    top, left = ((size - 7) // 2 for size in padded.shape[:2])
    np.testing.assert_array_equal(got, padded[top : top + 7, left : left + 7])
