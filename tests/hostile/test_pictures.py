"""Pictures of any mode, format, size and metadata, whole and damaged: RGB or one clear error."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image

from models.inputs.images import read_picture

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "TGA", "DDS")
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa")
WIDE_MODES = {"I;16": (np.uint16, 257), "I": (np.int32, 2**31 // 255), "F": (np.float32, 1 / 255)}
TAGS = (*(tag.value for tag in ExifTags.Base), 0, 65535)


def draw(rng: random.Random) -> tuple[Image.Image, np.ndarray]:
    """A picture of two greys, dark on the left and light on the right, and these greys."""
    width, height = (rng.choice((1, 2, 3, 17, 64, rng.randint(1, 300))) for _ in range(2))
    grey = np.full((height, width), rng.randint(0, 80), np.uint8)
    grey[:, width // 2 :] = rng.randint(180, 255)
    mode = rng.choice((*MODES, *WIDE_MODES))
    if mode in WIDE_MODES:
        dtype, factor = WIDE_MODES[mode]
        return Image.fromarray((grey * np.float64(factor)).astype(dtype)), grey
    image = Image.fromarray(grey)
    # Palettes keep greys exactly if they are made of greys.
    way = {"1": "L", "P": "L", "PA": "P"}.get(mode, "RGB")
    return image.convert(way).convert(mode), grey


def metadata(rng: random.Random) -> bytes:
    """EXIF with tags of fitting and unfitting types, at times broken."""
    exif = Image.Exif()
    values = (0, 3, 2**32 - 1, 0.5, "text", b"\0\xff", (1, 2), (1.5, 0.1), "", 2**16)
    for _ in range(rng.randint(0, 6)):
        exif[rng.choice(TAGS)] = rng.choice(values)
    if rng.random() < 0.7:
        exif[ExifTags.Base.Orientation] = rng.choice((*range(10), 2**16 - 1, "6", 6.0))
    try:
        content = exif.tobytes()
    except Exception:  # what Pillow itself cannot write
        content = b"Exif\0\0II*\0\x08\0\0\0"
    return damage(rng, content) if rng.random() < 0.3 else content


def damage(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    if rng.random() < 0.5:
        del changed[rng.randint(0, len(changed)) :]
    for _ in range(rng.choice((0, 1, 3, 30))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed)


def save(rng: random.Random, image: Image.Image) -> bytes | None:
    """The bytes of a file, or None where the format does not take the picture."""
    file = io.BytesIO()
    options = {"exif": metadata(rng)} if rng.random() < 0.6 else {}
    if rng.random() < 0.2:
        options["transparency"] = rng.choice((0, 255, 65535, b"\0\x80", (0, 0, 0)))
    try:
        image.save(file, rng.choice(FORMATS), **options)
    except Exception:
        return None
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_files_of_every_kind_whole_and_damaged(cases, one_clear_error, tmp_path):
    read = 0
    for case in cases(60):
        rng = random.Random(f"pictures/{case}")
        image, _ = draw(rng)
        content = save(rng, image)
        if content is None:
            continue
        damaged = rng.random() < 0.5
        file = tmp_path / f"{case}.{rng.choice(('png', 'jpg', 'none'))}"
        file.write_bytes(damage(rng, content) if damaged else content)
        try:
            got = read_picture(file)
        except Exception as error:
            one_clear_error(error)
            continue
        read += 1
        assert got.mode == "RGB"
        assert min(got.size) > 0
        if not damaged:
            assert sorted(got.size) == sorted(image.size), case
    assert read >= len(cases(60)) // 6


@pytest.mark.filterwarnings("ignore")
def test_pil_images_of_every_mode_keep_dark_and_light(cases):
    for case in cases(60):
        rng = random.Random(f"modes/{case}")
        image, grey = draw(rng)
        orientation = rng.choice((0, 1, 3, 6, 9, None))
        if orientation is not None:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            image.info["exif"] = exif.tobytes()
        shown = np.asarray(read_picture(image)).astype(int)
        turns = {3: 2, 6: 3}.get(orientation, 0)
        expected = np.rot90(grey, turns).astype(int)
        assert shown.shape == (*expected.shape, 3), case
        if image.mode == "1":
            expected = np.where(expected > 127, 255, 0)
            assert np.abs(shown.mean() - expected.mean()) < 90, case  # dithered
        else:
            assert np.abs(shown - expected[..., None]).max() <= 4, (case, image.mode)


def test_arrays_of_every_shape_and_type(cases, one_clear_error):
    for case in cases(100):
        rng = random.Random(f"arrays/{case}")
        shape = tuple(rng.choice((0, 1, 2, 3, 4, 7)) for _ in range(rng.randint(0, 4)))
        dtype = rng.choice((np.uint8, np.uint8, np.uint8, bool, np.float32, np.int64, object))
        pixels = np.ones(shape, dtype)
        channels = shape[2:] in ((), (1,), (3,), (4,))
        good = dtype == np.uint8 and len(shape) in (2, 3) and channels and pixels.size
        try:
            got = read_picture(pixels)
        except Exception as error:
            one_clear_error(error)
            assert not good, case
            continue
        assert good, case
        assert got.size == shape[1::-1]


def test_masked_pixels_are_not_shown(one_clear_error):
    with pytest.raises(ValueError, match="without a mask") as caught:
        read_picture(np.ma.masked_array(np.ones((4, 4), np.uint8), mask=True))
    one_clear_error(caught.value)


def test_a_picture_too_large_to_convert_is_refused_at_once(one_clear_error):
    with pytest.raises(ValueError, match="expected at most 178956970 pixels") as caught:
        read_picture(Image.new("1", (14_000, 14_000)))
    one_clear_error(caught.value)


def test_warnings_of_pillow_are_errors_where_the_caller_makes_them_so(tmp_path):
    image = Image.new("P", (4, 4))
    image.info["transparency"] = b"\0\x80"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(image).getpixel((0, 0)) == (255, 255, 255)
