"""Checks of a checkpoint's image settings (preprocessor_config.json) before they are used."""

import math
from typing import Any

from PIL import Image

from models.checkpoints.hf_settings import Between
from vkq_jax.messages import show

__all__ = [
    "MEANS",
    "MOST_TILES",
    "SCALES",
    "check_area_settings",
    "check_image_settings",
    "check_longest_edge",
    "check_max_tiles",
    "check_padded_square",
    "check_patch_settings",
    "check_resized",
    "check_square",
    "check_tile_counts",
    "check_tile_size",
    "check_whole_blocks",
]

_LARGEST_RESIZED = 2**26
"""Pixels of a resized or padded picture: 1 GB while transformers works on it."""

_LARGEST_EDGE = 2**16
MEANS, SCALES = Between(-255, 255), Between(1e-6, 255)
"""Ranges for pixels from 0 to 255 or rescaled; numbers beyond leave nothing of a picture."""

MOST_TILES = 128
"""Tiles of one picture."""

_LARGEST_TILE = 2**12
_SWITCHES = ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize")
_SWITCHES += ("crop_to_patches",)


def check_image_settings(image_processor: Any, image_size: int) -> None:
    """Checks the settings that transformers takes whatever their type or range.

    Args:
        image_processor: of transformers.
        image_size: height and width that the vision tower takes.

    Raises:
        ValueError: a setting of a wrong type or out of range, named.
    """
    _check_steps(image_processor)
    if image_processor.do_resize:
        for edge, value in _sizes(image_processor.size).items():
            valid = type(value) is int and 0 < value <= _LARGEST_EDGE
            _check(f"size.{edge}", value, valid, f"a whole number from 1 to {_LARGEST_EDGE}")
    for step, name in (("do_center_crop", "crop_size"), ("do_pad", "pad_size")):
        size = getattr(image_processor, name, None)
        if getattr(image_processor, step, None) and size is not None:
            found = _sizes(size)
            valid = found == {"height": image_size, "width": image_size}
            _check(name, found, valid, f"height and width {image_size}, as in the vision tower")


def check_longest_edge(image_processor: Any) -> None:
    """Checks the settings of Pixtral's kind, whose `size` bounds the sides of a picture.

    Args:
        image_processor: of transformers.

    Raises:
        ValueError: a setting of a wrong type or out of range, named.
    """
    _check_steps(image_processor)
    most = math.isqrt(_LARGEST_RESIZED)
    steps = (("do_resize", "size", True), ("do_center_crop", "crop_size", False))
    for step, name, one_edge in steps:
        if not getattr(image_processor, step, None):
            continue
        found = _sizes(getattr(image_processor, name))
        known = [{"height", "width"}] + [{"longest_edge"}] * one_edge
        valid = set(found) in known and all(
            type(edge) is int and 0 < edge <= most for edge in found.values()
        )
        edges = "longest_edge, or height and width," if one_edge else "height and width"
        _check(name, found, valid, f"{edges} from 1 to {most} pixels")


def check_area_settings(image_processor: Any, **tower: int) -> None:
    """Checks the settings of Qwen-VL's kind, whose `size` holds a least and a greatest area.

    Args:
        image_processor: of transformers.
        **tower: the values that the vision tower needs, by the names of the settings.

    Raises:
        ValueError: a setting of a wrong type or out of range, named.
    """
    check_patch_settings(image_processor, **tower)
    size = _sizes(image_processor.size)
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    valid = type(least) is int and type(most) is int and 0 < least <= most <= _LARGEST_RESIZED
    _check(
        "size",
        size,
        valid or not image_processor.do_resize,
        f"shortest_edge and longest_edge, pixels of whole pictures up to {_LARGEST_RESIZED}",
    )


def check_patch_settings(image_processor: Any, **tower: int) -> None:
    """Checks the steps that all image processors share, and what the vision tower prescribes.

    Args:
        image_processor: of transformers.
        **tower: what settings have to be for the vision tower, by their names.

    Raises:
        ValueError: a setting of a wrong type or out of range, named.
    """
    _check_steps(image_processor)
    for name, expected in tower.items():
        value = getattr(image_processor, name, None)
        _check(name, value, value == expected, f"{expected}, as in the vision tower")


def check_whole_blocks(image_processor: Any, picture: Image.Image, factor: int) -> None:
    """Raises ValueError for a picture that is not resized and has sides of parts of blocks.

    `factor` is the side of a block in pixels.
    """
    if not image_processor.do_resize and any(side % factor for side in picture.size):
        raise ValueError(
            f"image: a picture of {picture.width} x {picture.height} is not resized "
            f"(do_resize is false); expected sides that are multiples of {factor}"
        )


def _check_steps(image_processor: Any) -> None:
    """Checks the settings of the steps that all image processors share."""
    for name in (*_SWITCHES, "do_pad"):
        value = getattr(image_processor, name, None)
        _check(name, value, value is None or isinstance(value, bool), "true or false")
    if image_processor.do_normalize:
        for name, range_ in (("image_mean", MEANS), ("image_std", SCALES)):
            value = getattr(image_processor, name)
            numbers = value if isinstance(value, (list, tuple)) else [value] * 3
            valid = len(numbers) == 3 and all(_lies_in(range_, number) for number in numbers)
            _check(name, value, valid, f"three numbers from {range_.low} to {range_.high}")
    if image_processor.do_rescale:
        factor, described = image_processor.rescale_factor, f"{SCALES.low} to {SCALES.high}"
        _check("rescale_factor", factor, _lies_in(SCALES, factor), f"a number from {described}")
    if image_processor.do_resize:
        resample = image_processor.resample
        known = isinstance(resample, int) and resample in list(Image.Resampling)
        _check("resample", resample, resample is None or known, "one of Pillow's filters, 0 to 5")


def check_tile_counts(image_processor: Any) -> None:
    """Checks how many tiles a picture is cut into, `min_patches` to `max_patches`.

    Raises:
        ValueError: a number of a wrong type or out of range.
    """
    low, high = image_processor.min_patches, image_processor.max_patches
    _check("max_patches", high, type(high) is int and 1 <= high <= MOST_TILES, f"1 to {MOST_TILES}")
    _check("min_patches", low, type(low) is int and 1 <= low <= high, f"1 to max_patches={high}")


def check_tile_size(image_processor: Any) -> int:
    """The side of the tiles, `max_image_size`, that pictures up to `size` are cut into.

    Raises:
        ValueError: a setting of a wrong type or out of range, or one that makes too many tiles.
    """
    check_longest_edge(image_processor)
    found = _sizes(image_processor.max_image_size)
    side = found.get("longest_edge", 0)
    valid = type(side) is int and 0 < side <= _LARGEST_TILE
    valid &= set(found) == {"longest_edge"}
    _check("max_image_size", found, valid, f"longest_edge from 1 to {_LARGEST_TILE} pixels")
    if image_processor.do_resize:
        size = _sizes(image_processor.size)
        few = (-(-max(size.values()) // side)) ** 2 <= MOST_TILES
        _check("size", size, few, f"at most {MOST_TILES} tiles of {side} x {side} pixels")
    return side


def check_max_tiles(image_processor: Any, side: int, tiles: int) -> None:
    """Checks that pictures are cut into at most `tiles` squares of `side` pixels.

    Raises:
        ValueError: another number or size, named.
    """
    most = image_processor.max_image_tiles
    check_square(image_processor, side)
    _check("max_image_tiles", most, most == tiles, f"{tiles}, as in the vision tower")


def check_square(image_processor: Any, side: int) -> None:
    """Checks that `size` is the square of the vision tower.

    Raises:
        ValueError: another size.
    """
    size = _sizes(image_processor.size)
    square = size == {"height": side, "width": side}
    _check("size", size, square, f"height and width {side}, as in the vision tower")


def check_padded_square(image_processor: Any, side: int) -> None:
    """Checks that pictures are resized to `side` pixels at most, and then padded to a square.

    Raises:
        ValueError: a setting of a wrong type or out of range, named.
    """
    check_image_settings(image_processor, side)
    if image_processor.do_resize:
        least = image_processor.min_size
        check_square(image_processor, side)
        valid = type(least) is int and 0 < least <= side
        _check("min_size", least, valid, f"a whole number from 1 to {side}")
    mean = image_processor.image_mean
    color = mean is None or all(_lies_in(Between(0, 1), each) for each in mean)
    _check("image_mean", mean, color, "three numbers from 0 to 1: the color that is padded with")


def check_resized(image_processor: Any, picture: Image.Image) -> None:
    """Checks how large a picture becomes on its way to the model's size.

    Raises:
        ValueError: the picture is so long and narrow, or the setting so large, that the picture
            would be resized or padded to more than 2**26 pixels.
    """
    width, height = picture.size
    pixels = 0.0
    if getattr(image_processor, "do_pad", None):
        width = height = max(width, height)
        pixels = width * height
    size = _sizes(image_processor.size) if image_processor.do_resize else {}
    if "shortest_edge" in size:
        resized = width * height * (size["shortest_edge"] / min(width, height)) ** 2
        pixels = max(pixels, min(resized, size.get("longest_edge", math.inf) ** 2))
    elif size:
        pixels = max(pixels, math.prod(size.values()))
    if pixels > _LARGEST_RESIZED:
        raise ValueError(
            f"image: a picture of {picture.width} x {picture.height} would grow to "
            f"{pixels / 1e6:.0f} million pixels on its way to the model "
            f"(preprocessor_config.json: size={show(size)}), of at most "
            f"{_LARGEST_RESIZED / 1e6:.0f} million; crop long, narrow pictures first"
        )


def _sizes(size: Any) -> dict[str, int]:
    """The edges that are set, of transformers' SizeDict or of a dict."""
    return {name: value for name, value in dict(size).items() if value is not None}


def _lies_in(range_: Between, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return range_.low <= value <= range_.high


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(
            f"preprocessor_config.json: {name}: expected {expected}, got {show(value)}"
        )
