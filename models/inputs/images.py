"""Pictures from wherever they come: files, PIL images, arrays of NumPy or JAX."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from models.checkpoints.foreign_errors import named
from models.inputs.rgb import to_rgb
from vkq_jax.files.regular_file import open_regular
from vkq_jax.messages import show, show_path
from vkq_jax.validation import check_readable, check_untraced

__all__ = ["Picture", "Pictures", "group_by_prompt", "missing_file", "open_picture", "read_picture"]

type Picture = str | os.PathLike[str] | Image.Image | np.ndarray | jax.Array
"""A file's path, a PIL image, or uint8 pixels [height, width] or [height, width, 1, 3 or 4]."""

type Pictures = Picture | Sequence[Picture | Sequence[Picture] | None] | None
"""One picture, or one entry for each prompt: a picture, several, or None. An array [images, height,
width, channels] is a list of pictures."""


def group_by_prompt(images: Pictures, prompts: list[str], *, single: bool) -> list[list[Picture]]:
    """The pictures of each prompt.

    Args:
        images: as given by the caller.
        prompts: all prompts.
        single: whether the caller gave one prompt and not a list; `images` may then list the
            pictures of that prompt.
    """
    if images is None:
        return [[] for _ in prompts]
    entries: list[Any] = [images]
    if isinstance(images, (list, tuple)) or (
        isinstance(images, (np.ndarray, jax.Array)) and images.ndim == 4
    ):
        entries = list(images)
    if single and not any(isinstance(entry, (list, tuple)) for entry in entries):
        entries = [entries]
    if len(entries) != len(prompts):
        raise ValueError(
            f"images: expected one entry for each of {len(prompts)} prompts, got {len(entries)}"
        )
    groups = ([] if entry is None else entry for entry in entries)
    return [list(group) if isinstance(group, (list, tuple)) else [group] for group in groups]


def read_picture(picture: Picture) -> Image.Image:
    """The picture upright, in 8-bit RGB, transparent parts on white; see `models.inputs.rgb`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a file that is no picture, or a broken or empty picture.
    """
    if isinstance(picture, jax.Array):
        check_untraced("image", picture)
        picture = np.asarray(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Image.Image):
        with named(f"cannot read a PIL image of mode {picture.mode}"):
            return to_rgb(picture)
    if not isinstance(picture, (str, os.PathLike)):
        expected = "a path, a PIL image or an array of NumPy or JAX"
        raise ValueError(f"image: expected {expected}, got {show(picture)}")
    file = os.fsdecode(picture)
    if os.path.isdir(file):
        raise ValueError(f"image: expected a picture file, got the folder {show_path(file)}")
    if not os.path.isfile(file):
        raise missing_file("image file", file)
    with named(f"cannot read image {show_path(file)}"), open_picture(file) as image:
        return to_rgb(image)


def missing_file(kind: str, path: str | os.PathLike[str]) -> FileNotFoundError:
    """The error for a file that is not there.

    Raises:
        ValueError: it is there, but may not be read, or is a pipe or a device.
    """
    check_readable(path)
    if os.path.exists(path):
        raise ValueError(
            f"{kind} {show_path(path)}: expected a file, got a pipe, a device or the like: copy "
            "its content into a file"
        )
    hint = ""
    # `Path` makes one slash of two.
    if str(path).startswith(("http:/", "https:/", "data:", "file:/")):
        hint = "; nothing is downloaded: give a local file"
    elif os.path.lexists(path):
        hint = ": it is a link that leads nowhere"
    return FileNotFoundError(f"{kind} {show_path(path)} does not exist{hint}")


@contextlib.contextmanager
def open_picture(file: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The picture in a file, which Pillow reads as far as it is used.

    Raises:
        Exception: of any type, from Pillow, which names no file; see `foreign_errors.named`.
    """
    with open_regular(file) as stream:
        try:
            image = Image.open(stream)
        except UnidentifiedImageError as error:
            raise ValueError(
                "expected PNG, JPEG, WebP or another format of Pillow, got none or a damaged one"
            ) from error
        with image:
            yield image


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if isinstance(pixels, np.ma.MaskedArray):
        raise ValueError("image: expected an array without a mask, got a masked array: fill it")
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or pixels.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            "image: expected uint8 [height, width] or [height, width, 1, 3 or 4], "
            f"got {pixels.dtype} {pixels.shape}"
        )
    if not pixels.size:
        raise ValueError(f"image: expected an array with pixels, got shape {pixels.shape}")
    return to_rgb(Image.fromarray(pixels))
