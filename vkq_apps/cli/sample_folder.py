"""Pictures and clips of a folder, and the questions that are asked about them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import Clip
from models.families.base import ModelConfig
from models.inputs.clips import is_clip_file
from models.inputs.video_files import VIDEO_SUFFIXES
from models.prompts.visuals import check_takes_clips, takes_clips
from vkq_apps.files.text_files import read_text
from vkq_apps.terminal.console import log

__all__ = ["PROMPTS", "asked", "read_folder", "read_prompts"]

PROMPTS = (
    "describe the picture.",
    "what is written in the picture?",
    "how many things are there, and where?",
)
CLIP_PROMPTS = ("describe the video.", "what is written in the video?", "what happens, and where?")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_SUFFIXES = (*_PICTURES, *VIDEO_SUFFIXES)


def read_prompts(file: Path | None) -> Sequence[str] | None:
    """The questions of a file; None without one.

    Raises:
        ValueError: a file that cannot be read, or one without a question.
    """
    if file is None:
        return None
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"--prompts: {error}") from error
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"--prompts: expected a question a line in {file}, got none")
    return found


def read_folder(folder: Path, config: ModelConfig) -> list[Path | Clip]:
    """The pictures of a folder, and its clips where the model takes clips, in order of names.

    Raises:
        NotImplementedError: clips alone, for a model that takes pictures alone.
        ValueError: no folder, or neither a picture nor a clip in it.
    """
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"--images: expected a folder of pictures, {folder} {problem}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(
            f"--images: expected pictures ({', '.join(_PICTURES)}) or video files in {folder}"
        )
    if takes_clips(config):
        return [Clip(file) if is_clip_file(file) else file for file in files]
    pictures: list[Path | Clip] = [file for file in files if file.suffix.lower() in _PICTURES]
    if not pictures:
        check_takes_clips(config)
    if left_out := len(files) - len(pictures):
        log.print(
            f"{left_out} video files left out: {config.model_type} models take pictures alone"
        )
    return pictures


def asked(visuals: Sequence[Path | Clip], questions: Sequence[str] | None) -> list[tuple[Any, str]]:
    """Each picture or clip with one question, the questions in turn."""
    of_pictures, of_clips = (
        itertools.cycle(questions or built_in) for built_in in (PROMPTS, CLIP_PROMPTS)
    )
    return [(each, next(of_clips if isinstance(each, Clip) else of_pictures)) for each in visuals]
