"""Frames of video files, such as MP4, MKV or WebM: PyAV decodes them on the CPU.

Which frame has which number is read from the file's packets, without decoding; a frame is then
decoded from the last key frame before it on, so that some frames of a long film take little time.
"""

import bisect
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from models.checkpoints.foreign_errors import named
from vkq_jax.messages import show_path

__all__ = ["VIDEO_SUFFIXES", "VideoFile", "open_video"]

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Ends of names, in lower case, by which a video file is known."""

_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A video file's frames, not decoded yet.

    Attributes:
        path: of the file.
        times: of all frames, ascending, in the file's own units; plain numbers where frames do not
            state their times.
        keys: times of key frames, from which decoding can start; none in the latter case.
        fps: frames per second as the file states them; None: it does not.
    """

    path: Path
    times: Sequence[int]
    keys: Sequence[int]
    fps: float | None

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """The frames of these numbers, none smaller than the one before, in RGB and upright.

        Raises:
            ValueError: one of them cannot be decoded.
        """
        with _opened(self.path) as (container, stream):
            stream.thread_type = "AUTO"
            at, frame, frames = None, None, self._decode(container, stream)
            searched = bool(self.keys)
            for index in indices:
                time = self.times[index]
                if at is None or at < time:
                    if searched and self._skips(at, key := self._key(time)):
                        frames = self._decode(container, stream, key)
                    at, frame = _first_from(time, frames)
                    if searched and at != time:
                        # Some kinds of files (MPEG) do not find their key frames.
                        searched = False
                        frames = self._decode(container, stream, self.keys[0])
                        at, frame = _first_from(time, frames)
                if at != time:
                    raise ValueError(
                        f"frame {index} of {len(self.times)} cannot be decoded; the file may be "
                        "cut off or damaged"
                    )
                yield _upright(frame)

    def _decode(
        self, container: Any, stream: Any, key: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Frames and their times, from a key frame on or from where the container is."""
        if key is not None:
            container.seek(key, stream=stream)
        for number, frame in enumerate(container.decode(stream)):
            time = frame.pts if self.keys else number
            if time is not None:
                yield time, frame

    def _key(self, time: int) -> int:
        """The last key frame that does not follow a frame."""
        return self.keys[bisect.bisect_right(self.keys, time) - 1]

    def _skips(self, at: int | None, key: int) -> bool:
        """Whether frames lie between one that is decoded, if any, and a key frame after it."""
        done = 0 if at is None else bisect.bisect_right(self.times, at)
        return bisect.bisect_left(self.times, key) > done


def open_video(path: Path) -> VideoFile:
    """The numbers and times of a video file's frames, from its packets.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: no video file, or a damaged one.
    """
    with _opened(path) as (container, stream):
        # Packets themselves are not kept: those of a long film take gigabytes.
        packets = [
            (packet.pts, packet.is_discard, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size
        ]
        rate: Fraction | None = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else None
    timed = [packet for packet in packets if packet[0] is not None]
    times = sorted({time for time, is_discard, _ in timed if not is_discard})
    if len(times) < sum(not is_discard for _, is_discard, _ in packets):
        return VideoFile(path, range(len(packets)), (), fps)
    keys = sorted(time for time, _, is_key in timed if is_key)
    # A recording may start between key frames: what is before the first cannot be decoded.
    return VideoFile(path, [time for time in times if keys and time >= keys[0]], keys, fps)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its first video stream; PyAV's errors become a ValueError."""
    try:
        import av
    except ModuleNotFoundError as error:
        name = show_path(path.name)
        raise ModuleNotFoundError(
            f"video: {name}: expected PyAV, which decodes video files: pip install "
            f'"vkq-jax[video]"; or write the frames into a folder (ffmpeg -i {name} -vf fps=2 '
            "FOLDER/%05d.png) and give that, with its frames per second",
            name=error.name,
        ) from error
    # The absolute name is no address, and no file makes another one be read.
    options = {"protocol_whitelist": "file"}
    with named(f"cannot read video {show_path(path)}"):
        try:
            with av.open(str(path.absolute()), options=options) as container:
                if not container.streams.video:
                    raise ValueError("it has no pictures")
                yield container, container.streams.video[0]
        except av.FFmpegError as error:
            raise ValueError(error.strerror or str(error)) from error


def _first_from(time: int, frames: Iterator[tuple[int, Any]]) -> tuple[int | None, Any]:
    """The first of these frames that is not before a time; None and None: there is none."""
    return next((found for found in frames if found[0] >= time), (None, None))


def _upright(frame: Any) -> Image.Image:
    """A decoded frame as it is to be shown: telephones store films lying on their side."""
    image = frame.to_image()
    turn = _TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)
