"""Checks of pictures as arrays that families share."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

__all__ = [
    "bucket",
    "check_image_sizes",
    "check_image_tokens",
    "check_pixels",
    "pad_to_bucket",
    "token_runs",
]

_A = {"image": "an image", "video": "a video"}


def check_pixels(
    pixels: np.ndarray,
    shape: tuple[int | None, ...],
    described: str,
    *,
    name: str = "pixel_values",
) -> np.ndarray:
    """Preprocessed pictures in float32.

    Args:
        pixels: as given.
        shape: what is expected after the first axis; None where any number is right.
        described: the whole shape in words.
        name: of the array, for errors.

    Raises:
        ValueError: a wrong shape or dtype, no picture, or values that are not finite.
    """
    fits = pixels.ndim == len(shape) + 1 and all(
        wanted is None or wanted == got for wanted, got in zip(shape, pixels.shape[1:], strict=True)
    )
    # jnp's notion of floating knows bfloat16, NumPy's does not.
    if not fits or not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floats {described}, got {pixels.dtype} {pixels.shape}")
    if not len(pixels):
        raise ValueError(f"{name}: no image; pass None for a prompt without images")
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{name}: expected finite float32 values, got NaN or infinite ones")
    return pixels


def check_image_sizes(arrays: Mapping[str, np.ndarray]) -> list[tuple[int, int]]:
    """`image_sizes`, the height and width of each picture, which come with `pixel_values`.

    Raises:
        ValueError: `image_sizes` is missing, not wanted, or not [images, 2] with numbers above 0.
    """
    sizes = arrays.get("image_sizes")
    if (sizes is None) != (arrays.get("pixel_values") is None):
        given, other = ("image_sizes", "pixel_values")[:: -1 if sizes is None else 1]
        raise ValueError(f"{other}: expected it beside {given}, got {given} alone")
    if sizes is None:
        return []
    integers = np.issubdtype(sizes.dtype, np.integer)
    if not integers or sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes) or sizes.min() < 1:
        raise ValueError(
            "image_sizes: expected heights and widths of 1 or more, integers [images, 2], got "
            f"{sizes.dtype} {sizes.shape}"
        )
    return [(int(height), int(width)) for height, width in sizes]


def check_image_tokens(
    token: int, tokens: int, images: int, needed: int, *, kind: str = "image"
) -> None:
    """Raises ValueError unless there are as many image tokens as the pictures have features.

    Args:
        token: id of the image token.
        tokens: how many a batch has.
        images: its pictures.
        needed: the features of all of them.
        kind: "image", or "video" for tokens of clips.
    """
    if tokens == needed:
        return
    each = f"{needed // images} each" if images and needed % images == 0 else "all together"
    counts = (
        f"got {images} {kind}s, which need {needed} {kind} tokens ({each}), and {tokens} {kind} "
        f"tokens (id {token})"
    )
    if tokens == 0:
        raise ValueError(f"no {kind} token for {_A[kind]}: {counts}")
    if images == 0:
        raise ValueError(f"{kind} tokens without {_A[kind]}: {counts}")
    more = f"{kind}s than tokens" if tokens < needed else f"tokens than {kind}s"
    raise ValueError(f"more {more}: {counts}")


def bucket(count: int, smallest: int = 1) -> int:
    """A size for `count` things, the same for similar counts: compiled functions are kept by size.

    Counts are rounded up to a multiple of an eighth of the next power of two, and of `smallest`
    where that is more. Above 8 times `smallest` four sizes lie between two powers of two, and less
    than a fifth of a size is padding.
    """
    step = max((1 << (count - 1).bit_length()) // 8, smallest)
    return -(-count // step) * step


def pad_to_bucket(values: np.ndarray) -> np.ndarray:
    """`values` with zeros after them, up to the `bucket` of the first axis."""
    missing = bucket(len(values)) - len(values)
    return np.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)])


def token_runs(visual: np.ndarray) -> np.ndarray:
    """The number of the run of visual tokens that each token is in; -1 outside of all."""
    starts = visual & ~np.pad(visual, ((0, 0), (1, 0)))[:, :-1]
    return np.where(visual, np.cumsum(starts, -1) - 1, -1)
