"""Pictures of every mode to 8-bit RGB, as a person would see them."""

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

__all__ = ["to_rgb"]

_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1  # of TIFF


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture upright, in 8-bit RGB, transparent parts on white.

    Greys of more than 8 bits are scaled by their range, which is that of 16 bits in the modes
    "I;16". The modes "I" and "F" do not say which value is white: the smallest of 255, 65535 and
    2**31 - 1, and 1, 255 and 65535 for floats, that the picture stays within.

    Raises:
        ValueError: no pixels, or more than Pillow reads from files (179 million, by default);
            values outside these ranges, or an EPS file. Pillow raises
            exceptions of many types for pictures that it cannot decode.
    """
    if 0 in image.size:
        raise ValueError(f"expected a picture with pixels, got {image.width} x {image.height}")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > 2 * limit:
        raise ValueError(
            f"expected at most {2 * limit} pixels, got {image.width} x {image.height}: make it "
            "smaller first"
        )
    if image.format == "EPS":
        # Pillow would have Ghostscript run it, without a time limit.
        raise ValueError("EPS files are programs: convert it to PNG first")
    image.load()
    turn = _TURNS.get(_orientation(image))
    flat = _flatten(image)
    return flat if turn is None else flat.transpose(turn)


def _orientation(image: Image.Image) -> int:
    # `ImageOps.exif_transpose` also writes the other tags anew, and fails where one is odd.
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    # Pillow raises exceptions of many types. Unreadable EXIF turns nothing, as in any viewer.
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow has no direct way from premultiplied grey.
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _scale_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        values = values.view(np.uint32)
    if image.mode not in ("I", "F"):
        # TIFF also keeps 12 bits in this mode.
        white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    elif image.mode == "I" and image.format == "PPM":
        white = 65535  # Pillow scales greys of portable maps of more than 8 bits to 16
    else:
        white = _guess_white(values)
    grey = np.rint(np.clip(values * (255.0 / white), 0, 255)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _guess_white(values: np.ndarray) -> int:
    """The smallest usual range that the values stay within."""
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    # Resizing with a sharp filter overshoots a float range a little.
    slack = 0.1 if is_float else 0
    ranges = (1, 255, 65535) if is_float else (255, 65535, np.iinfo(values.dtype).max)
    for white in ranges:
        if low >= -slack * high and high <= (1 + slack) * white:
            return int(white)
    raise ValueError(
        f"expected finite greys from 0 to {', '.join(map(str, ranges[:-1]))} or {ranges[-1]}, "
        f"got {low:g} to {high:g}; scale them first"
    )
