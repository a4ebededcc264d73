import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from models.inputs.image_settings import check_resized
from models.inputs.images import read_picture
from models.inputs.rgb import _TURNS

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), np.uint8)
GREY[0, :2] = 0, 255
RGB = RNG.integers(0, 256, (6, 8, 3), np.uint8)


def read(picture):
    image = read_picture(picture)
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(image, format, **options):
    """A file of this format, opened but not yet read."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(file)


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_orientation_counts_from_a_file_and_in_a_pil_image_alike(format, orientation, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    # The stored picture is turned back from how it is to be seen.
    back = {6: 8, 8: 6}.get(orientation, orientation)
    image = Image.fromarray(RGB)
    stored = image if orientation == 1 else image.transpose(_TURNS[back])
    stored.save(tmp_path / "picture", format, exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "picture"), RGB)
    with Image.open(tmp_path / "picture") as opened:
        np.testing.assert_array_equal(read(opened), RGB)
        np.testing.assert_array_equal(read(opened), RGB)  # reading leaves the image alone


@pytest.mark.parametrize("value", [0, 9, 2**16 - 1])
def test_an_orientation_that_does_not_exist_turns_nothing(value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    np.testing.assert_array_equal(read(saved(Image.fromarray(RGB), "PNG", exif=exif)), RGB)


def test_odd_exif_tags_leave_the_orientation_in_force():
    """Pillow's `exif_transpose` fails here: it writes the float into a tag for whole numbers."""
    odd = struct.pack("<HHI4s", ExifTags.Base.Orientation, 3, 1, struct.pack("<HH", 3, 0))
    odd += struct.pack("<HHIf", ExifTags.Base.ImageWidth, 11, 1, 0.5)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + odd + struct.pack("<I", 0)
    image = saved(Image.fromarray(RGB[::-1, ::-1]), "JPEG", exif=exif, quality=100, subsampling=0)
    assert np.abs(read(image).astype(int) - RGB).max() < 30


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40])
def test_unreadable_exif_turns_nothing(exif):
    image = Image.fromarray(RGB)
    image.info["exif"] = exif
    np.testing.assert_array_equal(read(image), RGB)


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (np.uint16, 257),
        (np.int32, 1),
        (np.int32, 257),
        (np.int32, 2**31 // 255),
        (np.float32, 1 / 255),
        (np.float32, 1),
        (np.float32, 257),
    ],
)
def test_greys_of_more_than_8_bits_keep_their_shades(dtype, factor):
    image = Image.fromarray((GREY * np.float64(factor)).astype(dtype))
    assert image.mode in ("I;16", "I", "F")
    np.testing.assert_array_equal(read(image), as_rgb(GREY))
    np.testing.assert_array_equal(read(saved(image, "TIFF")), as_rgb(GREY))


def test_a_dark_grey_of_16_bits_stays_dark():
    dark = GREY.astype(np.uint16)
    for image in (Image.fromarray(dark), saved(Image.fromarray(dark), "PPM")):
        np.testing.assert_array_equal(read(image), as_rgb(np.rint(GREY / 257).astype(np.uint8)))


def test_big_endian_and_unsigned_greys():
    sixteen = Image.new("I;16B", (8, 6))
    sixteen.frombytes((GREY.astype(">u2") * 257).tobytes(), "raw", "I;16B")
    np.testing.assert_array_equal(read(sixteen), as_rgb(GREY))
    # Pillow shows unsigned 32-bit TIFF as signed: light pixels look negative.
    words = GREY.astype(np.uint32) * ((2**32 - 1) // 255)
    image = saved(Image.fromarray(words.view(np.int32)), "TIFF")
    signed, unsigned = (struct.pack("<HHII", 339, 3, 1, kind) for kind in (2, 1))
    image = Image.open(io.BytesIO(image.fp.getvalue().replace(signed, unsigned)))
    assert np.asarray(image).min() < 0
    np.testing.assert_array_equal(read(image), as_rgb(GREY))


def test_floats_may_overshoot_a_little():
    floats = Image.fromarray(GREY.astype(np.float32) / 255 * 1.04 - 0.02)
    assert np.abs(read(floats).astype(int) - as_rgb(GREY)).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La", "P"])
def test_transparent_parts_are_white(mode):
    alpha = np.where(np.arange(48).reshape(6, 8) % 2, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.dstack([as_rgb(GREY), alpha]))
    if mode == "P":
        levels = np.where(alpha > 0, GREY // 2 + 1, 0).astype(np.uint8)
        image = Image.fromarray(levels)
        image.putpalette(
            [level for i in range(256) for level in (min(max(2 * (i - 1), 0), 255),) * 3]
        )
        image.info["transparency"] = 0
        expected = np.where(alpha > 0, GREY // 2 * 2, 255)
    else:
        steps = {"PA": ["PA"], "LA": ["LA"], "La": ["LA", "La"], "RGBa": ["RGBa"]}
        for step in steps.get(mode, []):
            image = image.convert(step)
        expected = np.where(alpha > 0, GREY, 255)
    assert image.mode == mode
    np.testing.assert_array_equal(read(image), as_rgb(expected))


def test_half_transparent_parts_are_half_white():
    half = Image.fromarray(np.dstack([RGB, np.full((6, 8), 128, np.uint8)]))
    expected = 255 - (255 - RGB.astype(float)) * 128 / 255
    assert np.abs(read(half) - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_colour_is_white(dtype):
    grey = (GREY * np.float64(257 if dtype == np.uint16 else 1)).astype(dtype)
    image = saved(Image.fromarray(grey), "PNG", transparency=int(grey[1, 1]))
    hidden = GREY[1, 1]
    expected = np.where(hidden == GREY, 255, GREY)
    np.testing.assert_array_equal(read(image), as_rgb(expected))


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_colour_modes_keep_their_colours(mode):
    grey = Image.fromarray(as_rgb(GREY)).convert(mode)
    assert np.abs(read(grey).astype(int) - as_rgb(GREY)).max() <= 1


def test_arrays_of_one_three_and_four_channels():
    np.testing.assert_array_equal(read(RGB), RGB)
    np.testing.assert_array_equal(read(GREY), as_rgb(GREY))
    np.testing.assert_array_equal(read(GREY[..., None]), as_rgb(GREY))
    np.testing.assert_array_equal(read(RGB[::-1, ::2]), RGB[::-1, ::2])
    clear = np.dstack([RGB, np.zeros((6, 8), np.uint8)])
    np.testing.assert_array_equal(read(clear), np.full_like(RGB, 255))


def closed():
    image = saved(Image.fromarray(RGB), "PNG")
    image.close()
    return image


def cut(format, keep=0.6):
    file = io.BytesIO()
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(file, format)
    return Image.open(io.BytesIO(file.getvalue()[: int(len(file.getvalue()) * keep)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: np.zeros((0, 5, 3), np.uint8), r"with pixels, got shape \(0, 5, 3\)"),
        (lambda: np.zeros((5, 0), np.uint8), "with pixels, got shape"),
        (lambda: Image.new("RGB", (0, 5)), "with pixels, got 0 x 5"),
        (lambda: RGB[..., :2], r"got uint8 \(6, 8, 2\)"),
        (lambda: RGB / 255, "expected uint8 .* got float64"),
        (lambda: RGB[None], r"got uint8 \(1, 6, 8, 3\)"),
        (lambda: [RGB] * 500, "expected a path"),
        (lambda: Image.fromarray(np.full((4, 4), np.nan, np.float32)), "got nan to nan"),
        (lambda: Image.fromarray(np.full((4, 4), np.inf, np.float32)), "got inf to inf"),
        (lambda: Image.fromarray(np.full((4, 4), -1, np.int32)), "got -1 to -1"),
        (lambda: Image.fromarray(RNG.normal(size=(9, 9)).astype(np.float32)), "scale them first"),
        (closed, "cannot read a PIL image of mode RGB"),
        (lambda: cut("PNG"), "cannot read a PIL image"),
        (lambda: cut("TIFF"), "cannot read a PIL image"),
    ],
)
def test_what_is_no_picture_is_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message) as error:
        read_picture(make())
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("format", ["AVIF", "WEBP", "JPEG", "JPEG2000", "GIF"])
def test_damaged_files_are_named(format, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(whole, format)
    content = whole.getvalue()
    file = tmp_path / f"damaged.{format.lower()}"
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=rf"cannot read image .*{file.name}: ."):
        read_picture(file)


def test_a_decoder_that_fails_with_a_runtime_error_is_named(tmp_path):
    file = tmp_path / "damaged.avif"
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(file)
    content = bytearray(file.read_bytes())
    content[content.index(b"mdat") + 4] = 0
    file.write_bytes(content)
    with Image.open(file) as image, pytest.raises(RuntimeError):
        image.load()
    with pytest.raises(ValueError, match=r"damaged\.avif: RuntimeError: "):
        read_picture(file)


def test_eps_files_are_not_run(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "program.eps")
    with pytest.raises(ValueError, match=r"program\.eps: EPS files are programs"):
        read_picture(tmp_path / "program.eps")


def test_a_text_chunk_is_no_danger(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n4\nzz")
    Image.fromarray(RGB).save(tmp_path / "odd.png", pnginfo=info)
    np.testing.assert_array_equal(read(tmp_path / "odd.png"), RGB)


class _Settings:
    do_resize = True

    def __init__(self, size, do_pad=None):
        self.size, self.do_pad = size, do_pad


@pytest.mark.parametrize(
    ("settings", "size", "fits"),
    [
        (_Settings({"shortest_edge": 336}), (6000, 4000), True),
        (_Settings({"shortest_edge": 336}), (200, 1), True),
        (_Settings({"shortest_edge": 336}), (2000, 1), False),
        (_Settings({"shortest_edge": 336}), (1, 30000), False),
        (_Settings({"shortest_edge": 336, "longest_edge": 672}), (1, 30000), True),
        (_Settings({"height": 336, "width": 336}), (1, 30000), True),
        (_Settings({"height": 10**9, "width": 336}), (5, 5), False),
        (_Settings({"shortest_edge": 336}, do_pad=True), (1, 30000), False),
        (_Settings({"height": 336, "width": 336}, do_pad=True), (1, 3000), True),
    ],
)
def test_long_narrow_pictures_are_refused_before_they_fill_the_memory(settings, size, fits):
    picture = Image.new("RGB", size)
    if fits:
        assert check_resized(settings, picture) is None
        return
    with pytest.raises(ValueError, match="crop long, narrow pictures first") as error:
        check_resized(settings, picture)
    assert len(str(error.value)) < 400
