"""Ways to damage bytes, and images to damage: shared by the hostile-input tests.

In: good bytes and a generator. Out: bad bytes. Everything is a function of the generator's seed.
"""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

# Pieces that mean something to a parser, in every format the loader reads.
WORDS = {
    "jpg": [b"\xff" + bytes([m]) for m in (0xD8, 0xD9, 0xDA, 0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xEE)]
    + [b"\xff\xff", b"\xff\x00", b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00", b"Adobe", b"MPF\0"],
    "png": [b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fdAT", b"iCCP", b"zTXt"],
    "webp": [b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"],
    "gif": [b"GIF89a", b"!\xf9\x04", b"!\xff\x0bNETSCAPE2.0", b",", b";", b"!\xfe"],
    "tif": [b"II*\0", b"MM\0*", b"\x00\x01\x04\0", b"\x11\x01\x04\0", b"\x03\x01\x03\0"],
    "ppm": [b"P3\n", b"P6\n", b"#", b"99999999", b"-1", b"65535\n", b"\n"],
    "bmp": [b"BM", b"\x28\0\0\0", b"\x01\0\0\0", b"\x6c\0\0\0"],
    "txt": [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf", b"&amp;" * 9, b"\x1b["],
    "json": [b"{", b"[" * 5000, b'"', b"\\ud83d", b"1" * 5000, b"NaN", b'"key":', b"\0", b"\xff"],
}
NUMBERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\0\1\0\0"]


def scene(height: int = 48, width: int = 64) -> Image.Image:
    """Returns waves with a little noise."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (7 + k)) * np.cos(y / 9) for k in range(3)], -1)
    noise = np.random.default_rng(0).integers(-6, 7, waves.shape)
    return Image.fromarray((128 + 110 * waves + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def good_images() -> list[tuple[str, bytes]]:
    """Returns images in every format and mode that occurs, each with its key of `WORDS`."""
    image = scene()
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))
    wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    return [
        ("jpg", encoded(image, "JPEG")),
        ("jpg", encoded(image, "JPEG", progressive=True, subsampling=0)),
        ("jpg", encoded(image.convert("CMYK"), "JPEG")),
        ("jpg", encoded(image.convert("L"), "JPEG")),
        ("png", encoded(image, "PNG")),
        ("png", encoded(alpha, "PNG")),
        ("png", encoded(wide, "PNG")),
        ("png", encoded(image.quantize(16), "PNG")),
        ("png", encoded(image, "PNG", **frames)),
        ("webp", encoded(image, "WEBP")),
        ("webp", encoded(alpha, "WEBP", lossless=True)),
        ("webp", encoded(image, "WEBP", **frames)),
        ("gif", encoded(image, "GIF")),
        ("gif", encoded(image, "GIF", **frames)),
        ("tif", encoded(image, "TIFF")),
        ("tif", encoded(wide, "TIFF")),
        ("tif", encoded(alpha, "TIFF", compression="tiff_lzw")),
        ("bmp", encoded(image, "BMP")),
        ("bmp", encoded(image.quantize(16), "BMP")),
        ("ppm", encoded(image, "PPM")),
    ]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flips one to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(data: bytes, rng: random.Random) -> bytes:
    """Repeats, removes or moves a stretch."""
    first, second, third = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    piece = data[first:second]
    rest = rng.choice([data, data[:first] + data[second:]])
    return rest[:third] + piece * rng.choice([0, 1, 1, 50]) + rest[third:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Puts extreme numbers where headers keep sizes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place, number = rng.randrange(min(len(data), 120)), rng.choice(NUMBERS)
        number = number[: rng.choice([1, 2, 4])]
        changed[place : place + len(number)] = number
    return bytes(changed)


def insert(data: bytes, rng: random.Random, kind: str) -> bytes:
    """Puts words of the format in places where they may not belong."""
    for _ in range(rng.randint(1, 4)):
        place, word = rng.randrange(len(data) + 1), rng.choice(WORDS[kind])
        data = data[:place] + word + data[place + rng.choice([0, len(word)]) :]
    return data


def damage(kind: str, data: bytes, rng: random.Random) -> bytes:
    """Damages a member once or twice, in ways drawn at random."""
    for _ in range(rng.randint(1, 2)):
        way = rng.choice([flip, cut, splice, overwrite, insert])
        if data:
            data = insert(data, rng, kind) if way is insert else way(data, rng)
    # Else the checksums would keep the decoder from ever seeing damage.
    return repaired_png(data) if kind == "png" and rng.random() < 0.5 else data


def repaired_png(data: bytes) -> bytes:
    """Makes the checksums right again."""
    changed, position = bytearray(data), 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[position + 4 : end]))
        position = end + 4
    return bytes(changed)
