"""Clips from wherever they come: arrays, lists of pictures, folders, animated and video files."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from models.checkpoints.foreign_errors import named
from models.inputs.images import Picture, missing_file, open_picture, read_picture
from models.inputs.rgb import to_rgb
from models.inputs.video_files import VIDEO_SUFFIXES, open_video
from vkq_jax.messages import show, show_path

__all__ = [
    "ASSUMED_FPS",
    "Clip",
    "ReadClip",
    "Video",
    "Videos",
    "group_clips",
    "is_clip_file",
    "read_clip",
]

ASSUMED_FPS = 24
"""Frames per second where nothing says a clip's rate, as transformers assumes."""

_RATES = (1e-6, 1e6)  # frames per second: times of all frames stay in the range of int32

_MOST_PIXELS = 2**34  # of an animated file, all of whose frames are decoded for their durations


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip and how fast its frames follow each other.

    Attributes:
        frames: uint8 pixels [frames, height, width, 1, 3 or 4]; the list of pictures; or a path: of
            a folder, whose files are the frames in the order of the numbers in their names, of a
            video file, or of an animated GIF, WebP or PNG file.
        fps: frames per second, 1e-6 to 1e6; None: the rate that the file states, if it states one.
    """

    frames: np.ndarray | Sequence[Picture] | str | os.PathLike[str]
    fps: float | None = None

    def __post_init__(self) -> None:
        """Checks `fps`."""
        fps = self.fps
        number = isinstance(fps, (int, float, np.integer, np.floating))
        slowest, fastest = _RATES
        if fps is None or (number and not isinstance(fps, bool) and slowest <= fps <= fastest):
            return
        raise ValueError(
            f"clip: fps: expected frames per second above 0, {slowest:g} to {fastest:g}, got "
            f"{show(fps)}"
        )


type Video = Clip | np.ndarray | Sequence[Picture] | str | os.PathLike[str]
"""A `Clip`, or what its `frames` may be."""

type Videos = Video | Sequence[Video | Sequence[Video] | None] | None
"""One clip, or one entry for each prompt: a clip, several, or None."""


class ReadClip(NamedTuple):
    """The frames of a clip that a model is shown.

    Attributes:
        frames: RGB, of one size, shrunk as `read_clip` was told.
        indices: their numbers in the whole clip, which has `total`.
        fps: frames per second of the whole clip; None: not known.
    """

    frames: list[Image.Image]
    indices: list[int]
    total: int
    fps: float | None

    @property
    def assumed_fps(self) -> float:
        """`fps`, or `ASSUMED_FPS`."""
        return ASSUMED_FPS if self.fps is None else self.fps


class _Source(NamedTuple):
    """A clip before its frames are read: `read` gives those at some indices, in order."""

    total: int
    fps: float | None
    read: Callable[[Sequence[int]], Iterator[Image.Image]]


def group_clips(videos: Videos, prompts: Sequence[str], *, single: bool) -> list[list[Clip]]:
    """The clips of each prompt.

    Args:
        videos: as given by the caller.
        prompts: all prompts.
        single: whether the caller gave one prompt and not a list; `videos` may then list the clips
            of that prompt.

    Raises:
        ValueError: not one entry for each prompt, or no clip.
    """
    if videos is None:
        return [[] for _ in prompts]
    if single or _is_clip(videos):
        entries: list[Any] = [videos]
    elif isinstance(videos, (list, tuple)):
        entries = list(videos)
    else:
        raise _not_a_clip(videos)
    if len(entries) != len(prompts):
        raise ValueError(
            f"videos: expected one entry for each of {len(prompts)} prompts, got {len(entries)}"
        )
    return [_clips_of(entry) for entry in entries]


def _clips_of(entry: Any) -> list[Clip]:
    if entry is None:
        return []
    if _is_clip(entry) or _all_pictures(entry):
        return [entry if isinstance(entry, Clip) else Clip(entry)]
    if not isinstance(entry, (list, tuple)) or not entry:
        raise _not_a_clip(entry)
    wrong = [each for each in entry if not (_is_clip(each) or _all_pictures(each))]
    if wrong:
        raise _not_a_clip(wrong[0])
    return [each if isinstance(each, Clip) else Clip(each) for each in entry]


def _is_clip(value: Any) -> bool:
    """Whether a value is one clip, whatever it is part of."""
    if isinstance(value, np.ndarray):
        return value.ndim > 3
    return isinstance(value, (Clip, str, os.PathLike))


def _all_pictures(value: Any) -> bool:
    """Whether a value is a list of pictures, which is one clip; a folder is no picture."""

    def is_picture(each: Any) -> bool:
        if isinstance(each, (str, os.PathLike)):
            return not os.path.isdir(each)
        return isinstance(each, Image.Image) or (isinstance(each, np.ndarray) and each.ndim < 4)

    return isinstance(value, (list, tuple)) and bool(value) and all(map(is_picture, value))


def _not_a_clip(value: Any) -> ValueError:
    return ValueError(
        "video: expected uint8 [frames, height, width, 3], a list of pictures, the path of a "
        f"folder or of a video or animated file, or a Clip of one of these, got {show(value)}"
    )


def read_clip(
    clip: Clip,
    choose: Callable[[int, float | None], Sequence[int]],
    shrink: Callable[[Image.Image, int], Image.Image] = lambda frame, count: frame,
) -> ReadClip:
    """The chosen frames of a clip; one frame at a time is in memory before it is shrunk.

    Args:
        clip: as given.
        choose: gets the clip's number of frames and its frames per second (None: not known), and
            returns indices of frames, none smaller than the one before.
        shrink: shrinks a frame; gets it and the number of chosen frames.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: a video file, without PyAV, which decodes it.
        ValueError: no clip, a broken one, one without frames, frames of several sizes, or a file
            that states a rate which cannot be, where `clip` has none.
    """
    source = _source(clip)
    if not source.total:
        raise ValueError("video: expected frames, got a clip without any")
    fps = _stated_rate(clip, source.fps) if clip.fps is None else float(clip.fps)
    indices = [int(index) for index in choose(source.total, fps)]
    if not indices or min(indices) < 0 or max(indices) >= source.total:
        raise ValueError(
            f"video: expected settings that choose some of its {source.total} frames, got "
            f"{show(indices)}"
        )
    frames, size = [], None
    for frame in source.read(indices):
        size = frame.size if size is None else size
        if frame.size != size:
            shown = " and ".join(f"{width} x {height}" for width, height in (size, frame.size))
            raise ValueError(f"video: expected frames of one size, got {shown}: resize them first")
        frames.append(shrink(frame, len(indices)))
    return ReadClip(frames, indices, source.total, fps)


def _stated_rate(clip: Clip, fps: float | None) -> float | None:
    """The rate of a clip's file; ValueError for one that only a damaged header states."""
    slowest, fastest = _RATES
    if fps is None or slowest <= fps <= fastest:
        return fps
    name = show_path(os.fsdecode(clip.frames))  # type: ignore[arg-type]  # others state no rate
    raise ValueError(
        f"video: {name} states {fps:g} frames per second: expected {slowest:g} to {fastest:g}; "
        "give Clip(path, fps=...)"
    )


def _source(clip: Clip) -> _Source:
    frames = clip.frames
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4:
            raise _not_a_clip(frames)
        return _from_pictures(list(frames))
    if isinstance(frames, (list, tuple)):
        return _from_pictures(frames)
    if not isinstance(frames, (str, os.PathLike)):
        raise _not_a_clip(frames)
    path = Path(os.fsdecode(frames))
    if path.is_dir():
        files = [each for each in path.iterdir() if not each.name.startswith(".")]
        if not files:
            raise ValueError(f"video: the folder {show_path(path)} has no frames")
        return _from_pictures(sorted(files, key=_by_numbers))
    if not path.is_file():
        raise missing_file("video file", os.fsdecode(frames))
    return _from_file(path)


def _from_pictures(pictures: Sequence[Any]) -> _Source:
    def read(indices: Sequence[int]) -> Iterator[Image.Image]:
        return (_read_frame(index, pictures[index]) for index in indices)

    return _Source(len(pictures), None, read)


def _read_frame(index: int, picture: Any) -> Image.Image:
    if isinstance(picture, (str, os.PathLike)):
        if _is_animated_file(picture):
            raise ValueError(
                f"video: frame {index}, {show_path(picture)}, is a clip of its own: in a list of "
                "several clips write each as Clip(path)"
            )
        if os.path.isdir(picture):
            raise ValueError(
                f"video: frame {index}: expected a picture, got the folder {show_path(picture)}"
            )
    elif isinstance(picture, Image.Image) and _is_animated(picture):
        raise ValueError(
            f"video: frame {index}: expected a picture, got an animated image: give the path of "
            "its file, or each frame as image.copy()"
        )
    try:
        return read_picture(picture)
    except ValueError as error:
        raise ValueError(f"video: frame {index}: {error}") from error


def is_clip_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a video file, by its name, or of an animated picture."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES or _is_animated_file(path)


def _is_animated_file(path: str | os.PathLike[str]) -> bool:
    try:
        with open_picture(path) as image:
            return _is_animated(image)
    # Pillow raises exceptions of many types; `read_picture` says what is wrong.
    except Exception:
        return False


def _is_animated(image: Image.Image) -> bool:
    """Whether an image has frames; the second picture of a photo (MPO) is none."""
    return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def _by_numbers(path: Path) -> list[tuple[bool, int, str]]:
    """A key that sorts frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _from_file(path: Path) -> _Source:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        file = open_video(path)
        return _Source(len(file.times), file.fps, file.read)
    with named(f"cannot read video {show_path(path)}"), open_picture(path) as image:
        total = getattr(image, "n_frames", 1)
        if total * image.width * image.height > _MOST_PIXELS:
            raise ValueError(
                f"{total} frames of {image.width} x {image.height} take minutes to decode: write "
                "the frames that matter into a folder"
            )
        milliseconds = 0.0
        for index in range(total):
            image.seek(index)
            if image.format == "WEBP":  # Pillow knows the duration once the frame is decoded
                image.load()
            milliseconds += image.info.get("duration", 0)
    fps = 1000 * total / milliseconds if milliseconds > 0 else None

    def read(indices: Sequence[int]) -> Iterator[Image.Image]:
        with named(f"cannot read video {show_path(path)}"), open_picture(path) as image:
            for index in indices:
                image.seek(index)
                yield to_rgb(image)

    return _Source(total, fps, read)
