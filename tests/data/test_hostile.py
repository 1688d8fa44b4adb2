"""Hostile members: damaged, absurd, huge, or of another kind than their name.

Every one is decoded or refused under a cause, within a bound on time and memory. `make soak` runs
50,000 of them.
"""

import json
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from fuzzing import damage, encoded, good_images, repaired_png, scene
from PIL import Image
from watched import run_here, run_watched

from counterpoint.data.errors import CAUSES, SampleError
from counterpoint.data.images.decode import MAX_PIXELS, EncodedImage, Jpeg
from counterpoint.data.images.header_checks import MAX_CHUNKS, vet_image
from counterpoint.data.shards.fields import MAX_CAPTION, find_image, sample_key
from counterpoint.data.text.captions import FirstFound
from counterpoint.data.text.tokenize import ClipTokenizer

# Pillow and libtiff warn a lot about damaged files.
pytestmark = pytest.mark.filterwarnings("ignore")

# Of any one member, in MiB: the largest accepted WebP with transparency takes the
# most.
MAX_MEMORY = 2560


def read_caption(raw: dict) -> str:
    """The one place that names what finds captions."""
    return FirstFound(FIELDS)(raw, 0.0)


def read_image(data: bytes) -> torch.Tensor:
    """The one place that names the decoder under test: bytes to uint8 [3, H, W]."""
    return EncodedImage.open(data).pixels()


FIELDS = ("json:caption", "txt")
TEXT = "a dog, zwei Hunde, 三匹の犬 &amp; more".encode()
JSON = json.dumps({"key": "0001", "caption": "a cat", "width": 3, "nested": [{}]}).encode()
IMAGES = good_images()
TOKENIZE = ClipTokenizer()


def outcome(raw: dict) -> str:
    """Returns `read`, or the cause under which a sample is counted; checks what was read."""
    try:
        text = read_caption(raw)
        sample_key(raw, "source", "00000.tar", "key")
        image = read_image(find_image(raw))
    except SampleError as error:
        assert error.cause in CAUSES and len(str(error)) < 2000
        return error.cause
    assert 0 < len(text) <= MAX_CAPTION and text.encode()
    ids, lengths = TOKENIZE([text], 77)
    assert ids.shape == (1, 77) and 2 <= int(lengths) <= 77
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    assert 0 < image[0].numel() <= MAX_PIXELS
    return "read"


def fuzzed(number: int) -> str:
    """Damages one member of a sample; all else is as good as before."""
    rng = random.Random(number)
    kind, image = rng.choice(IMAGES)
    raw = {"__key__": "k", kind: image, "txt": TEXT}
    if rng.random() < 0.3:
        raw["json"] = JSON
    target = rng.choice([kind, kind, kind, kind, *(raw.keys() & {"txt", "json"})])
    raw[target] = damage(target, raw[target], rng)
    return outcome(raw)


def test_a_sample_of_damaged_members():
    report = run_here(fuzzed, 700)
    assert report.outcomes.keys() == {"read", "bad_image", "bad_text", "no_caption"}
    assert report.memory < MAX_MEMORY


@pytest.mark.soak
def test_fifty_thousand_damaged_members():
    report = run_watched(fuzzed, 50_000)
    print(report)
    assert sum(report.outcomes.values()) == 50_000
    assert set(report.outcomes) <= {"read", "bad_image", "bad_text", "no_caption", "too_large"}
    assert report.memory < MAX_MEMORY


@pytest.mark.soak
@pytest.mark.parametrize("form", ["JPEG", "CMYK", "PNG", "WEBP", "GIF", "TIFF", "I;16"])
def test_the_largest_accepted_images(form):
    """What one image can take at most."""
    side = min(int(MAX_PIXELS**0.5), 16383)
    if form == "JPEG":
        data = encoded(Image.new("RGB", (side, side)), form, progressive=True)
    elif form == "CMYK":
        data = encoded(Image.new("CMYK", (side, side)), "JPEG")
    elif form == "I;16":
        data = encoded(Image.new("I;16", (side, side)), "PNG")
    elif form == "GIF":
        data = encoded(Image.new("P", (side, side)), form, transparency=0)
    else:
        data = encoded(Image.new("RGBA", (side, side), (9, 9, 9, 99)), form)
    report = run_watched(lambda number: outcome({"__key__": "k", "jpg": data, "txt": TEXT}), 1)
    print(form, report)
    assert report.outcomes == {"read": 1}
    assert report.memory < MAX_MEMORY


@pytest.mark.parametrize("number", range(len(IMAGES)))
def test_a_cut_image_is_whole_or_refused(number):
    """Never half an image."""
    data = IMAGES[number][1]
    whole = read_image(data)
    rng = random.Random(number)
    for length in [0, 1, 10, *(rng.randrange(len(data)) for _ in range(20)), len(data) - 1]:
        try:
            assert torch.equal(read_image(data[:length]), whole)
        except SampleError as error:
            assert error.cause == "bad_image"


def test_a_png_is_exact_or_refused():
    """Its checksums cover every byte."""
    data = encoded(scene(), "PNG")
    whole = read_image(data)
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            assert torch.equal(read_image(bytes(changed)), whole)
        except SampleError:
            refused += 1
    assert refused >= 145


def resized(form: str, width: int, height: int) -> bytes:
    """Returns a small image whose header declares another size."""
    data = bytearray(encoded(scene(), form))
    if form == "JPEG":
        place = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, place + 5, height % 65536, width % 65536)
    elif form == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        data = bytearray(repaired_png(bytes(data)))
    elif form == "GIF":
        struct.pack_into("<HH", data, 6, width % 65536, height % 65536)
    elif form == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif form == "PPM":
        data = bytearray(b"P6 %d %d 255\n" % (width, height)) + bytes(100)
    return bytes(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "PPM"])
def test_absurd_sizes(form):
    for size in [(65500, 65500), (60000, 3000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (0, 5)]:
        try:
            image = read_image(resized(form, *size))
        except SampleError as error:
            assert error.cause == "bad_image"
        else:
            # JPEG and GIF hold 16 bits, so that some of these declare something small.
            assert form in ("JPEG", "GIF") and image[0].numel() <= MAX_PIXELS


@pytest.mark.parametrize("size", [(1, 201), (3000, 14), (65500, 1)])
def test_lines_are_no_images(size):
    """Scaled to 224 pixels in the shorter side, the last would take ten gigabytes."""
    with pytest.raises(SampleError, match="a line"):
        read_image(encoded(Image.new("RGB", size), "PNG"))


def test_a_jpeg_of_endless_scans_reaches_no_decoder(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("decoded"))
    monkeypatch.setattr(Jpeg, "_decode", lambda *args: pytest.fail("decoded"))
    data = encoded(Image.new("L", (2048, 2048), 128), "JPEG", progressive=True)
    scan, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    bomb = data[:scan] + data[scan:end] * 5000 + data[end:]
    with pytest.raises(SampleError, match="more than 38 scans"):
        read_image(bomb)


def test_what_follows_a_jpeg_is_nobodys_business():
    """Phones put films and further images there."""
    data = encoded(scene(), "JPEG", progressive=True)
    assert torch.equal(read_image(data + b"\xff\xda\0\x02" * 1000), read_image(data))


@pytest.mark.parametrize(
    "form", ["EPS", "ICO", "PCX", "TGA", "SGI", "JPEG2000", "PDF", "MSP", "IM", "DIB"]
)
def test_other_formats_never_reach_a_decoder(form, monkeypatch):
    """EPS would start an interpreter, others have rarely read code behind them."""
    image = scene().convert("1" if form == "MSP" else "RGB")
    data = encoded(image, form)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("decoded"))
    with pytest.raises(SampleError, match="no image format begins with"):
        read_image(data)


def test_many_chunks_are_not_all_read(monkeypatch):
    empty = repaired_png(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0teXt\0\0\0\0" * 150_000)
    read, crc32 = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda chunk: read.append(1) or crc32(chunk))
    with pytest.raises(SampleError, match="chunks"):
        vet_image(empty)
    assert len(read) == MAX_CHUNKS < 150_000


SAMPLE = {"__key__": "k", "png": encoded(scene(), "PNG")}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"txt": b""}, "no_caption"),
        ({"txt": b"\xef\xbb\xbf"}, "no_caption"),
        ({"txt": b" \xe2\x80\x83\n"}, "no_caption"),
        ({"txt": b"a\xff"}, "bad_text"),
        ({"txt": bytes(40)}, "bad_text"),
        ({"txt": b"&#" + b"9" * 5000}, "read"),
        ({"txt": b"&amp;#" + b"1" * 5000 + b";"}, "read"),
        ({"txt": b"x" * (1 << 20) + b"x"}, "too_large"),
        ({"txt": TEXT, "json": b"[" * 200_000}, "bad_text"),
        ({"txt": TEXT, "json": b'{"caption": ' + b"9" * 5000 + b"}"}, "bad_text"),
        ({"txt": TEXT, "json": b'{"caption": "half \\ud83d"}'}, "bad_text"),
        ({"txt": TEXT, "json": b'{"caption": "\xff"}'}, "bad_text"),
        ({"txt": TEXT, "json": b'{"caption": "a", "key": "\\ud83d"}'}, "read"),
        (
            {"txt": TEXT, "json": b'{"caption": "a", "pad": "' + b"x" * (1 << 20) + b'"}'},
            "too_large",
        ),
        ({"txt": TEXT, "json": b'\xef\xbb\xbf{"caption": "a"}'}, "read"),
        ({"txt": TEXT, "json": b'{"caption": ["a", {}], "key": {}}'}, "read"),
        ({"txt": TEXT, "json": b"[1, 2]"}, "read"),
        ({"txt": TEXT, "png": b""}, "bad_image"),
        ({"txt": TEXT, "jpg": b""}, "bad_image"),
    ],
)
def test_texts(members, expected):
    assert outcome(SAMPLE | members) == expected


def test_a_mark_at_the_beginning_is_no_part_of_the_text():
    assert read_caption({"__key__": "k", "txt": b"\xef\xbb\xbfa dog"}) == "a dog"


@pytest.mark.parametrize("piece", ["amp;", "\u0301", "é", "<", "&", "\x01", " ", "Ã©", "&lt;"])
def test_a_huge_text_is_cut_before_it_becomes_tokens(piece):
    """Undoing nested `&amp;amp;...` takes a minute for 64 kB when nothing bounds it."""
    text = ("&" + piece * 200_000).encode()[: 1 << 20]
    caption = read_caption({"__key__": "k", "txt": text})
    assert 0 < len(caption) <= MAX_CAPTION
    ids, _ = TOKENIZE([caption], 77)
    assert ids.shape == (1, 77)


def test_numbers_without_a_range_are_refused_and_white_may_be_zero():
    ramp = np.linspace(0, 1, 48 * 64).reshape(48, 64)
    for pixels in (ramp.astype(np.float32), (ramp * 1000).astype(np.int32)):
        with pytest.raises(SampleError, match="no known range"):
            read_image(encoded(Image.fromarray(pixels), "TIFF"))
    wide = (ramp * 65535).astype(np.uint16)
    dark = read_image(encoded(Image.fromarray(wide), "TIFF"))
    light = read_image(encoded(Image.fromarray(wide), "TIFF", tiffinfo={262: 0}))
    assert torch.equal(light, 255 - dark)
    dim = read_image(b"P5 64 48 65535\n" + (wide >> 9).astype(">u2").tobytes())
    assert int(dim.max()) == 0
