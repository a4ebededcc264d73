"""Video files damaged byte by byte: frames of one size, or one clear error, in bounded time."""

import random
import struct
import time

import numpy as np
import pytest

from models.inputs.clips import Clip, read_clip
from tests.models.test_clips import write_film
from tests.support.clip_cases import clip

FILMS = {
    "a.mkv": ("ffv1", "bgr0"),
    "a.mp4": ("mpeg4", "yuv420p"),
    "a.avi": ("mpeg4", "yuv420p"),
    "a.ts": ("mpeg2video", "yuv420p"),
}
SECONDS = 20


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for name, (codec, pixels) in FILMS.items():
        write_film(folder / name, clip(12, 16, 16), fps=25, codec=codec, pixels=pixels)
    return {name: (folder / name).read_bytes() for name in FILMS}


def damaged(rng, content):
    """The film cut off, or with bytes changed, taken out, doubled or moved."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + rng.randint(1, 60)]
            case 2:
                data[at:at] = data[max(0, at - 40) : at]
            case 3:
                data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
            case 4:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case _:
                other = rng.randrange(len(data) + 1)
                data[at : at + 9], data[other : other + 9] = (
                    data[other : other + 9],
                    data[at : at + 9],
                )
    return bytes(data)


@pytest.mark.parametrize(("scale", "rate"), [(2**31 - 1, 1), (1, 2**31 - 1)])
def test_a_rate_that_cannot_be_is_no_time_of_a_frame(films, tmp_path, scale, rate, one_clear_error):
    """Positions of frames would leave the range of int32."""
    content = bytearray(films["a.avi"])
    at = content.index(b"strh") + 28  # dwScale and dwRate of the stream's header
    assert struct.unpack_from("<II", content, at) == (1, 25)
    struct.pack_into("<II", content, at, scale, rate)
    file = tmp_path / "a.avi"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.avi states .* frames per second: expected") as caught:
        read_clip(Clip(file), lambda total, fps: [0])
    one_clear_error(caught.value)
    found = read_clip(Clip(file, fps=25), lambda total, fps: [0, total - 1])
    assert (found.fps, found.total) == (25, 12)


def test_damaged_films(films, tmp_path, cases, one_clear_error):
    read, refused = 0, 0
    for case in cases(40):
        rng = random.Random(f"films/{case}")
        content = damaged(rng, films[rng.choice(sorted(films))])
        file = tmp_path / rng.choice(sorted(films))  # the name may belie the content, too
        file.write_bytes(content)
        started = time.monotonic()
        try:
            found = read_clip(Clip(file), lambda total, fps: sorted({0, total // 2, total - 1}))
        except Exception as error:
            one_clear_error(error)
            refused += 1
        else:
            assert len(found.frames) == len(found.indices)
            assert len({frame.size for frame in found.frames}) == 1
            assert all(frame.mode == "RGB" for frame in found.frames)
            assert found.fps is None or np.isfinite(found.fps)
            assert found.fps is None or found.fps > 0
            read += 1
        assert time.monotonic() - started < SECONDS, case
    assert read
    assert refused
