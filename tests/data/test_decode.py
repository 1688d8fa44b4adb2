"""Every kind of picture against Pillow, numpy arithmetic, or a picture made for the purpose."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from counterpoint.data.decode import decode_caption, decode_image, find_image, sample_key
from counterpoint.data.errors import SampleError


def encode(array, mode=None, form="PNG", **save):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, form, **save)
    return buffer.getvalue()


def decoded(data):
    image = decode_image(data)
    assert image.dtype == torch.uint8
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

    # One colour of an RGB picture declared transparent.
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
    "data", [b"", b"not a picture", encode(RGB)[:60], encode(RGB, form="JPEG")[:-40], bomb()]
)
def test_bad_pictures(data):
    with pytest.raises(SampleError) as caught:
        decode_image(data)
    assert caught.value.cause == "bad_image"


@given(st.data())
def test_damaged_pictures_are_decoded_or_refused(data):
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


def sample(**members):
    return {"__key__": "k", **members}


def test_captions():
    both = sample(txt="é".encode(), json=b'{"caption": "other", "n": 3}')
    assert decode_caption(both, ("txt",)) == "é"
    assert decode_caption(both, ("json:caption", "txt")) == "other"
    assert decode_caption(both, ("json:none", "txt")) == "é"
    assert decode_caption(sample(txt=b" \n", alt=b"x"), ("txt", "alt")) == "x"


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ({"jpg": b""}, "no_caption"),
        ({"txt": b"  "}, "no_caption"),
        ({"txt": b"\xff\xfe"}, "bad_text"),
    ],
)
def test_bad_captions(members, cause):
    with pytest.raises(SampleError) as caught:
        decode_caption(sample(**members), ("txt",))
    assert caught.value.cause == cause


def test_pictures_are_found_by_extension():
    assert find_image(sample(txt=b"t", webp=b"w")) == b"w"
    with pytest.raises(SampleError, match="no_image: 'k' has only"):
        find_image(sample(txt=b"t"))


def test_keys():
    named = sample(json=b'{"key": "000000007", "uid": 5}')
    key = sample_key(named, "a", "00000.tar", "key")
    assert key == sample_key(named | {"__key__": "moved"}, "a", "00009.tar", "key")
    plain = sample(txt=b"")
    others = [
        sample_key(named, "b", "00000.tar", "key"),
        sample_key(named, "a", "00000.tar", "uid"),
        sample_key(plain, "a", "00000.tar", "key"),
        sample_key(plain, "a", "00001.tar", "key"),
        sample_key(plain | {"__key__": "l"}, "a", "00000.tar", "key"),
    ]
    assert len({key, *others}) == 6
    assert all(-(2**63) <= k < 2**63 for k in others)
    # A JSON that cannot be used is as good as none.
    for data in (b"[1]", b"{", b"\xff", b'{"key": null}', b"[" * 100_000):
        broken = sample(json=data)
        assert sample_key(broken, "a", "00000.tar", "key") == others[2]
