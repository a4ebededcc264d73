"""Clips of any container, length, size, rate and damage: the frames meant, or an error."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageSequence

import models
from models.inputs.clips import read_clip
from tests.models.test_clips import stand_in
from tests.support.clip_cases import CASES

RATES = (None, None, 1, 2.5, 24, 1e-6, 1e6, 0, -1, float("nan"), float("inf"), 1e-300, 1e300, True)
RATES += ("2", 10**400, np.float32(3), np.complex64(1), [2], 2 + 0j)
COUNTS = (None, None, None, 1, 2, 3, 7, 0, -1, 2**31, 2**70, 1.0, True, "2", float("nan"))
DURATIONS = (0, 1, 20, 40, 100, 65535)


def draw(rng):
    """Frames [frames, height, width, 3], lossless in every container but GIF."""
    frames = rng.choice((1, 1, 2, 3, 5, 17, rng.randint(1, 40)))
    size = [rng.choice((1, 3, 12, 16, 28, rng.randint(1, 60))) for _ in range(2)]
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (frames, *size, 3))
    return pixels.astype(np.uint8)


def animated(rng, frames, kind):
    """The bytes of an animated file."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    durations = [rng.choice(DURATIONS) for _ in frames]
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(file, kind, save_all=True, append_images=rest, duration=durations, **options)
    return file.getvalue()


def damaged(rng, content):
    content = bytearray(content)
    match rng.randrange(3):
        case 0:
            del content[rng.randrange(len(content)) :]
        case 1:
            for _ in range(rng.choice((1, 3, 30))):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 2:  # a count of frames, or a size, of four bytes
            at = rng.randrange(min(len(content), 80))
            content[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
    return bytes(content)


def source(rng, frames, folder):
    """A clip of these frames, and whether it has to be read as they are."""
    kind = rng.choice(("GIF", "WEBP", "PNG", "array", "list", "folder", "folder", "sequence"))
    if kind == "array":
        return frames, True
    if kind == "list":
        return [Image.fromarray(frame) for frame in frames], True
    if kind == "folder":
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"frame{number}.png")
        odd = rng.choice((None, None, b"", b"text", "larger", "grey"))
        if isinstance(odd, bytes):
            (folder / "frame3.png").write_bytes(odd)
        elif odd == "larger":
            Image.new("RGB", (70, 70)).save(folder / "frame0.png")
        elif odd == "grey":
            Image.new("I;16", frames.shape[2:0:-1], 65535).save(folder / "frame0.png")
        return folder, odd is None
    file = folder.with_suffix(f".{kind.lower()}")
    if kind == "sequence":  # the same object again and again, which shows its last frame
        file.write_bytes(animated(rng, frames, "PNG"))
        return list(ImageSequence.Iterator(Image.open(file))), len(frames) == 1
    content, whole = animated(rng, frames, kind), rng.random() < 0.5
    file.write_bytes(content if whole else damaged(rng, content))
    return file, whole and kind != "GIF"


@pytest.mark.filterwarnings("ignore")
def test_clips_of_every_container_whole_and_damaged(cases, one_clear_error, tmp_path):
    read = 0
    for case in cases(40):
        rng = random.Random(f"clips/{case}")
        frames = draw(rng)
        videos, whole = source(rng, frames, tmp_path / "frames")
        wanted = sorted(rng.choices(range(len(frames)), k=rng.choice((1, 2, 5))))
        try:
            fps = rng.choice(RATES)
            got = read_clip(models.Clip(videos, fps), lambda total, fps, own=wanted: own)
        except Exception as error:
            one_clear_error(error)
            plain = fps is None or type(fps) in (int, float)
            assert not (whole and plain and fps in (None, 1, 2.5, 24)), case
            continue
        read += 1
        shapes = {frame.size for frame in got.frames}
        assert len(got.frames) == len(wanted)
        assert len(shapes) == 1
        assert {frame.mode for frame in got.frames} == {"RGB"}
        # Writers leave out a frame that is equal to the one before it.
        if whole and got.total == len(frames):
            np.testing.assert_array_equal(np.stack(got.frames), frames[wanted])
    assert read >= len(cases(40)) // 4


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    made = {}

    def get(title):
        if title not in made:
            made[title] = stand_in(tmp_path_factory.mktemp("clips"), CASES[title])
        return made[title]

    return get


@pytest.mark.filterwarnings("ignore")
def test_prompts_with_clips_of_every_family(model_of, cases, one_clear_error):
    made = 0
    for case in cases(16):
        rng = random.Random(f"prompts/{case}")
        model = model_of(rng.choice(list(CASES)))
        clips = [draw(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        kinds = ["video"] * len(clips) + ["image"] * rng.choice((0, 0, 1, 2))
        if rng.random() < 0.2:
            kinds.append(rng.choice(("image", "video")))
        rng.shuffle(kinds)
        pictures = [draw(rng)[0] for _ in range(kinds.count("image"))]
        rates = [rng.choice(RATES[:7]) for _ in clips]
        try:
            inputs = models.prepare(
                model,
                prompts="a".join(f"<{kind}>" for kind in kinds) + "b",
                images=pictures or None,
                videos=[models.Clip(*each) for each in zip(clips, rates, strict=True)],
                num_frames=rng.choice(COUNTS),
            )
        except Exception as error:
            one_clear_error(error)
            continue
        made += 1
        pixels, positions = np.asarray(inputs.pixel_values), np.asarray(inputs.positions)
        assert np.isfinite(pixels).all()
        assert inputs.visual_mask.sum() > 0
        assert positions.min() >= 0
        # Text counts on from token to token, whatever the clip's rate.
        text = positions[0, -2:].reshape(2, -1)
        np.testing.assert_array_equal(text[1] - text[0], 1)
    assert made >= len(cases(16)) // 6


def test_every_number_of_frames_can_be_taken_of_a_clip(model_of, cases):
    """Indices rise and stay in the clip, for settings of all families."""
    from models.prompts.processor import processor_of
    from models.prompts.visuals import clip_settings

    for case in cases(300):
        rng = random.Random(f"counts/{case}")
        model = model_of(rng.choice(list(CASES)))
        total = rng.randint(1, 900)
        count = rng.randint(1, total)
        settings = clip_settings(model, processor_of(model), count)
        try:
            indices = settings.sample(total, rng.choice((None, 1, 2.5, 24.0, 1e-6, 1e6)))
        except ValueError:
            assert count <= 2 or total <= 4, (case, total, count)
            continue
        assert 0 <= indices[0] <= indices[-1] < total, (case, total, count)
        assert indices == sorted(indices)
        assert len(indices) in range(count - 2, count + 3), (case, total, count, len(indices))


def test_an_animated_file_that_would_take_hours_is_refused_at_once(tmp_path, one_clear_error):
    """Three megabytes of frames that change one pixel of a large picture."""
    first, file = Image.new("L", (4000, 4000)), io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=[Image.new("L", (4000, 4000), 1)])
    header, frame = file.getvalue()[:-1], b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    (tmp_path / "long.gif").write_bytes(header + 20_000 * frame + b";")
    with pytest.raises(ValueError, match="4000 x 4000 take minutes") as caught:
        read_clip(models.Clip(tmp_path / "long.gif"), lambda total, fps: [0])
    one_clear_error(caught.value)
