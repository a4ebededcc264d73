"""Pictures from wherever they come: files, PIL images, NumPy arrays."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

__all__ = ["Picture", "Pictures", "group_by_prompt", "read_picture"]

type Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file's path, a PIL image, or uint8 pixels [height, width] or [height, width, 3 or 4]."""

type Pictures = Picture | Sequence[Picture | Sequence[Picture] | None] | None
"""One picture, or one entry for each prompt: a picture, several, or None."""


def group_by_prompt(images: Pictures, prompts: list[str], *, single: bool) -> list[list[Picture]]:
    """The pictures of each prompt.

    Args:
        images: as given by the caller.
        prompts: all prompts.
        single: whether the caller gave one prompt and not a list; `images` may then list the
            pictures of that prompt.
    """
    entries: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
    if images is None:
        return [[] for _ in prompts]
    if single and not any(isinstance(entry, (list, tuple)) for entry in entries):
        entries = [entries]
    if len(entries) != len(prompts):
        raise ValueError(
            f"images: expected one entry for each of {len(prompts)} prompts, got {len(entries)}"
        )
    groups = ([] if entry is None else entry for entry in entries)
    return [list(group) if isinstance(group, (list, tuple)) else [group] for group in groups]


def read_picture(picture: Picture) -> Image.Image:
    """The picture in RGB, turned as its file says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or a broken one.
    """
    if isinstance(picture, np.ndarray):
        channels = picture.shape[2:]
        if picture.dtype != np.uint8 or picture.ndim < 2 or channels not in ((), (3,), (4,)):
            raise ValueError(
                "image: expected uint8 [height, width] or [height, width, 3 or 4], "
                f"got {picture.dtype} {picture.shape}"
            )
        return Image.fromarray(picture).convert("RGB")
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if not isinstance(picture, (str, os.PathLike)):
        raise ValueError(f"image: expected a path, a PIL image or an array, got {picture!r}")
    if not os.path.isfile(picture):
        raise FileNotFoundError(f"image file {os.fspath(picture)} does not exist")
    try:
        with Image.open(picture) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {os.fspath(picture)}: {error}") from error
