"""Data of one's own: a JSONL of {image(s) or video(s), question, answer or answers}."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from models import Clip
from vkq_apps.evals.datasets.entries import Entry, jsonl_entries
from vkq_apps.evals.datasets.format import Format
from vkq_apps.evals.metrics.text import EXACT_IGNORING_CASE
from vkq_apps.evals.samples import Sample

__all__ = ["JSONL"]


def _read(path: Path) -> Iterator[Sample]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a JSONL file, there is none")
    for number, record in enumerate(jsonl_entries(path), 1):
        # Tables written as JSON have null where a record has no such field.
        given = {name: value for name, value in record.fields.items() if value is not None}
        entry = record.within(given)
        key = entry.name("id") if "id" in entry.fields else str(number)
        images, videos = _files(entry, path.parent, "image"), _files(entry, path.parent, "video")
        if not images and not videos:
            raise entry.error(
                "a field 'image', 'images' or 'video'", sorted(map(str, entry.fields))
            )
        clips, num_frames = _clips(entry, videos)
        answers = entry.texts(_either(entry, "answer", "answers"))
        choices = entry.texts("choices") if "choices" in entry.fields else ()
        if not all(choices) or len(set(choices)) < len(choices):
            raise entry.error("'choices' to be different texts", list(choices))
        if choices and not set(answers) <= set(choices):
            raise entry.error(f"the answer to be one of {list(choices)}", list(answers))
        yield Sample(
            key=key,
            picture=repr((images, clips, num_frames)),
            load=partial(list, images),
            question=entry.text("question"),
            answers=answers,
            choices=choices,
            num_pictures=len(images),
            clips=clips,
            num_frames=num_frames,
            place=entry.place,
        )


def _clips(entry: Entry, videos: list[Path]) -> tuple[tuple[Clip, ...], int | None]:
    """The record's clips, with their frames per second, and how many frames to take of each."""
    for name in ("fps", "num_frames"):
        if name in entry.fields and not videos:
            raise entry.error(f"a field 'video' or 'videos' beside {name!r}", entry.fields[name])
    fps = entry.number("fps") if "fps" in entry.fields else None
    count = entry.number("num_frames") if "num_frames" in entry.fields else None
    if isinstance(count, float):
        raise entry.error("'num_frames' to be a whole number", count)
    try:
        return tuple(Clip(video, fps) for video in videos), count
    except ValueError as error:
        raise ValueError(f"{entry.where}: {error}") from error


def _files(entry: Entry, folder: Path, kind: str) -> list[Path]:
    """Those of pictures, or of clips, which may also be folders."""
    if not {kind, f"{kind}s"} & set(entry.fields):
        return []
    files = [folder / name for name in entry.texts(_either(entry, kind, f"{kind}s"))]
    for file in files:
        # Nor a name that no file can have.
        if not os.path.isfile(file) and not (kind == "video" and os.path.isdir(file)):
            what = "picture file" if kind == "image" else "video file or folder of frames"
            raise entry.error(f"a {what} {file}", "no such file")
    return files


def _either(entry: Entry, one: str, several: str) -> str:
    """The one of two fields that an entry has; raises its error for none and for both."""
    given = [name for name in (one, several) if name in entry.fields]
    if len(given) != 1:
        both = ", not both" * bool(given)
        raise entry.error(f"a field {one!r} or {several!r}{both}", sorted(map(str, entry.fields)))
    return given[0]


JSONL = Format(
    "jsonl",
    "one object a line: image or video (or images, videos), question, answer (or answers), and "
    "perhaps choices, id, and fps and num_frames of the videos",
    _read,
    EXACT_IGNORING_CASE,
    prompt="{question}",
    max_new_tokens=40,
)
