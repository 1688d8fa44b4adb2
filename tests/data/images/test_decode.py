"""Every kind of image against Pillow, numpy arithmetic, or an image made for the purpose."""

import gc
import io
import struct
import sys
import weakref
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from counterpoint.data.errors import SampleError
from counterpoint.data.images import decode as module
from counterpoint.data.images.decode import EncodedImage, decode_image


def encode(array, mode=None, form="PNG", **save):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, form, **save)
    return buffer.getvalue()


def decoded(data):
    image = decode_image(data)
    assert image.dtype == torch.uint8 and image.stride(0) == 1
    opened = EncodedImage.open(data)
    assert (opened.height, opened.width) == image.shape[1:]
    return image.permute(1, 2, 0).numpy()


RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_forms(form):
    data = encode(RGB, form=form, lossless=True) if form == "WEBP" else encode(RGB, form=form)
    np.testing.assert_array_equal(decoded(data), RGB)


def test_jpeg_and_its_orientation_tag():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(RGB, form="JPEG", exif=exif)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoded(data), expected)


def test_transparency_shows_white():
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255.0
    expected = colour * alpha + 255 * (1 - alpha)
    assert np.abs(decoded(encode(rgba)) - expected).max() <= 1

    grey = encode(rgba[..., ::3])  # LA
    expected = colour[..., :1] * alpha + 255 * (1 - alpha)
    assert np.abs(decoded(grey) - expected).max() <= 1

    # A palette with transparency for some entries, as icon sets have it.
    indices = (np.arange(63) % 4).astype(np.uint8).reshape(9, 7)
    image = Image.fromarray(indices, "P")
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128, 255]))
    shown = np.array([[255, 255, 255], [127, 255, 127], [0, 0, 255], [9, 9, 9]])
    assert np.abs(decoded(buffer.getvalue()).astype(int) - shown[indices]).max() <= 1

    # One colour of an RGB image declared transparent.
    data = encode(np.tile(palette[:2], (4, 1, 1)), transparency=(255, 0, 0))
    np.testing.assert_array_equal(decoded(data)[0], [[255, 255, 255], [0, 255, 0]])


def test_grey_sixteen_bits_one_bit_and_cmyk():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(decoded(encode(grey)), np.repeat(grey[..., None], 3, -1))
    wide = (grey.astype(np.uint16) << 8) + 77
    np.testing.assert_array_equal(decoded(encode(wide)), np.repeat(grey[..., None], 3, -1))
    bits = decoded(encode(grey, "1"))
    assert set(np.unique(bits).tolist()) <= {0, 255}
    smooth = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    cmyk = decoded(encode(smooth, "CMYK", "JPEG", quality=100))
    assert np.abs(cmyk.astype(int) - smooth).max() <= 4


def test_animations_show_their_first_frame():
    frames = [Image.fromarray(np.full((5, 5, 3), level, dtype=np.uint8)) for level in (40, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(decoded(buffer.getvalue())).tolist() == [40]


def bomb() -> bytes:
    """A PNG header that declares 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data", [b"", b"not an image", encode(RGB)[:60], encode(RGB, form="JPEG")[:-40], bomb()]
)
def test_bad_images(data):
    with pytest.raises(SampleError) as caught:
        decode_image(data)
    assert caught.value.cause == "bad_image"


@given(st.data())
def test_damaged_images_are_decoded_or_refused(data):
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
    content = bytearray(encode(RGB, form=form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(content))
    except SampleError as error:
        assert error.cause == "bad_image"
    else:
        assert image.ndim == 3 and image.shape[0] == 3 and image.dtype == torch.uint8


def photo(height=203, width=330, seed=0):
    """Waves and noise, as a camera might see them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 7), np.sin(x / 15 - y / 40), np.cos(y / 11)]
    pixels = 128 + 90 * np.stack(waves, -1) + rng.normal(0, 3, (height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8)


JPEGS = {
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "rgb": {"keep_rgb": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
}


@pytest.mark.parametrize("save", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("library", ["simplejpeg", "pillow"])
def test_jpegs_equal_pillows(save, library, monkeypatch):
    if library == "pillow":
        monkeypatch.setattr(module, "simplejpeg", None)
    data = encode(photo(), form="JPEG", quality=90, **save)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoded(data), expected)
    np.testing.assert_array_equal(decoded(data + b"and more"), expected)


@pytest.mark.parametrize("save", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_no_jpeg_is_half_grey(save, ending):
    pytest.importorskip("simplejpeg")
    data = encode(photo(), form="JPEG", quality=90, **save)
    for part in (0.5, 0.9):
        image = EncodedImage.open(data[: int(len(data) * part)] + ending)
        for factor in image.factors:
            with pytest.raises(SampleError, match="bad_image"):
                image.pixels(factor)


def test_stray_bytes_between_segments_do_no_harm():
    data = encode(photo(), form="JPEG", quality=90)
    scan = data.index(b"\xff\xda")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoded(data[:scan] + bytes(3) + data[scan:]), expected)
    lost = encode(photo(), form="JPEG", quality=90, restart_marker_rows=1)
    gap = lost.index(b"\xff\xd2"), lost.index(b"\xff\xd3")
    with pytest.raises(SampleError):
        decoded(lost[: gap[0]] + lost[gap[1] :])


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("shape", [(203, 330), (64, 65), (256, 256)])
def test_scaled_jpegs_are_means_of_squares(factor, shape):
    pytest.importorskip("simplejpeg")
    pixels = photo(*shape)
    image = EncodedImage.open(encode(pixels, form="JPEG", quality=95, subsampling=0))
    scaled = image.pixels(factor).permute(1, 2, 0).double().numpy()
    assert scaled.shape == (-(-shape[0] // factor), -(-shape[1] // factor), 3)
    rows, columns = shape[0] // factor, shape[1] // factor
    whole = pixels[: rows * factor, : columns * factor].astype(float)
    means = whole.reshape(rows, factor, columns, factor, 3).mean((1, 3))
    # Not the same low-pass, but the same place: any shift by a pixel would be far worse.
    assert np.abs(scaled[:rows, :columns] - means).mean() < 2.5
    if factor < 8:
        moved = np.abs(scaled[1:rows, 1:columns] - means[:-1, :-1]).mean()
        assert moved > 4 * np.abs(scaled[:rows, :columns] - means).mean()


def test_who_can_be_scaled():
    pytest.importorskip("simplejpeg")
    wanted = {
        encode(photo(), form="JPEG"): (1, 2, 4, 8),
        encode(photo(), "L", "JPEG"): (1, 2, 4, 8),
        encode(photo(63, 300), form="JPEG"): (1,),
        encode(photo(), "CMYK", "JPEG"): (1,),
        encode(photo()): (1,),
    }
    assert {data: EncodedImage.open(data).factors for data in wanted} == wanted


def test_the_header_is_enough_for_the_size():
    data = encode(photo(), form="JPEG")
    image = EncodedImage.open(data[: data.index(b"\xff\xda") + 20])
    assert (image.height, image.width, image.num_bytes) == (203, 330, 0)
    whole = EncodedImage.open(data)
    assert whole.pixels() is whole.pixels() and whole.num_bytes == 203 * 330 * 3


@pytest.fixture
def quick_collections():
    """Leaves what there is already out of collections, which takes seconds late in a session."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_forgotten_image_takes_no_memory(form, monkeypatch, quick_collections):
    """A part of a batch has hundreds, and keeps their shells until all of it is made."""
    opened, original = [], Image.open

    def watched(*args, **options):
        image = original(*args, **options)
        opened.append(weakref.ref(image))
        return image

    monkeypatch.setattr(Image, "open", watched)
    data = encode(photo(), form=form)
    num_owners = sys.getrefcount(data)
    image = EncodedImage.open(data)
    assert (image.num_bytes, image.file_bytes) == (0, len(data))
    gc.collect()
    assert form != "WEBP" or all(image() is None for image in opened), "8 bytes a pixel"
    image.pixels()
    gc.collect()
    assert all(image() is None for image in opened), "Pillow's pixels beside ours"
    assert image.num_bytes == 203 * 330 * 3
    image.forget()
    assert (image.num_bytes, image.file_bytes) == (0, 0)
    assert sys.getrefcount(data) == num_owners
    with pytest.raises(AssertionError, match="forgotten"):
        image.pixels()
    unread = EncodedImage.open(data)
    unread.forget()
    gc.collect()
    assert sys.getrefcount(data) == num_owners and all(image() is None for image in opened)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_scans_after_a_whole_image(mode):
    data = encode(photo(), mode, "JPEG")
    scan = data.index(b"\xff\xda")
    # Decoders refuse them at once, so that they need not be counted before.
    with pytest.raises(SampleError):
        decoded(data[:-2] + data[scan:-2] * 100 + b"\xff\xd9")
    # What follows the image, or lies in a comment, is not its scan.
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoded(data + b"\xff\xda\x00\x08" * 100), expected)
    comment = b"\xff\xfe" + struct.pack(">H", 402) + b"\xff\xda\x00\x08" * 100
    np.testing.assert_array_equal(decoded(data[:2] + comment + data[2:]), expected)


def segments(data: bytes, num: int, at: int = 2) -> bytes:
    """Puts empty comments into a JPEG."""
    return data[:at] + b"\xff\xfe\x00\x02" * num + data[at:]


@pytest.mark.parametrize("progressive", [False, True])
def test_comments_beyond_number(progressive):
    """Ten million of them would take seconds in forty megabytes, of 64 x 64 pixels."""
    data = encode(photo(64, 64), "RGB", "JPEG", progressive=progressive)
    expected = decoded(data)
    end = len(data) - 2
    np.testing.assert_array_equal(decoded(segments(data, 1000)), expected)
    np.testing.assert_array_equal(decoded(data + bytes(2_000_000)), expected), "after its end"
    for num, at in ((140_000, 2), (300_000, 2), (300_000, end)):
        with pytest.raises(SampleError, match="JPEG has more than 131072 segments"):
            decoded(segments(data, num, at))


def test_a_large_image_has_fewer_scans():
    """A pass over nine megapixels takes a fortieth of a second: 64 would take more than one."""
    side = 3000
    flat = np.zeros((side, side, 3), np.uint8)
    data = encode(flat, "RGB", "JPEG", progressive=True)
    assert decoded(data).shape == (side, side, 3)
    num, scan = data.count(b"\xff\xda"), data[data.rindex(b"\xff\xda") : -2]
    assert 1 < num <= 16
    with pytest.raises(SampleError, match="JPEG has more than 17 scans"):
        decoded(data[:-2] + scan * (18 - num) + b"\xff\xd9")


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_numbers_in_words(kind):
    """Pillow reads two and a half megabytes of them a second."""
    small = b"P%d 2 1 %s1 0 %s" % (kind, b"" if kind == 1 else b"1 ", b"0 " * 4)
    assert decoded(small).shape == (1, 2, 3)
    with pytest.raises(SampleError, match="bytes of numbers in words, more than 4194304"):
        decoded(small + b" " * (4 << 20))
