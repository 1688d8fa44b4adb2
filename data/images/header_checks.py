"""Checks of an encoded image before a decoder reads it.

In: bytes. Out: the name of its format, or a `SampleError`. Decoders guard against much, but not
against files of other formats under an image's name (Pillow would start a PostScript interpreter
for some), images that take hours, and damage that only a checksum shows.
"""

import zlib

from ..errors import SampleError

# First bytes of each accepted format, by Pillow's name of it.
SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PPM": tuple(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \t\n\r#"),
}
# Encoders write about ten scans. Thirty bytes make another one, which costs a pass over the whole
# image: a file of 400 kB keeps a decoder busy for ten minutes.
MAX_SCANS = 64
# A pass over so many pixels takes half a second. Few scans are free, whatever the size.
MAX_SCANNED_PIXELS = 160_000_000
FREE_SCANS = 16
# Of 8 kB each, as encoders write them, enough for the largest accepted image.
MAX_CHUNKS = 1 << 17
# Decoders take a microsecond for each segment, and ten bytes of a file can be two of them. Photos
# have some dozens; a file that cannot hold more than this many is not searched.
MAX_SEGMENTS = 1 << 17
SMALL_BYTES = 1 << 20
BYTES_PER_PIXEL = 4
# Numbers in words (P1 to P3) are read by Python, at 2.5 MB/s.
MAX_TEXT_BYTES = 4 << 20


def vet_image(data: bytes) -> str:
    """Returns Pillow's name of an image's format.

    Raises:
        SampleError: `bad_image`: another format, a PNG whose checksums are wrong, a JPEG with an
            absurd number of scans or segments, or a large portable map in words.
    """
    for name, beginnings in SIGNATURES.items():
        if data.startswith(beginnings) and (name != "WEBP" or data[8:12] == b"WEBP"):
            break
    else:
        raise SampleError("bad_image", f"no image format begins with {data[:12]!r}")
    if name == "PNG":
        _check_chunks(data)
    elif name == "JPEG":
        _check_jpeg(data)
    elif name == "PPM" and data[1] in b"123" and len(data) > MAX_TEXT_BYTES:
        size = f"{len(data)} bytes of numbers in words, more than {MAX_TEXT_BYTES}"
        raise SampleError("bad_image", size)
    return name


def _check_chunks(data: bytes) -> None:
    """Checks the checksums of a PNG: decoders leave out those of the pixels."""
    view = memoryview(data)
    position = 8
    for _ in range(MAX_CHUNKS):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(data):
            raise SampleError("bad_image", f"the PNG is cut off after {len(data)} bytes")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise SampleError("bad_image", f"wrong checksum in the PNG at byte {position}")
        if view[position + 4 : position + 8] == b"IEND":
            return
        position = end + 4
    raise SampleError("bad_image", f"the PNG has more than {MAX_CHUNKS} chunks")


def _check_jpeg(data: bytes) -> None:
    """Bounds the time that decoding takes.

    A JPEG whose first scan holds all of it, as in most photographs, ends there for decoders;
    searching it for more takes a tenth of the time of decoding it.
    """
    is_whole, num_pixels = _first_scan(data)
    is_small = len(data) <= SMALL_BYTES + BYTES_PER_PIXEL * num_pixels
    max_scans = min(MAX_SCANS, max(FREE_SCANS, MAX_SCANNED_PIXELS // max(1, num_pixels)))
    if not is_small or (not is_whole and data.count(b"\xff\xda") > max_scans):
        _check_scans(data, max_scans)


def _first_scan(data: bytes) -> tuple[bool, int]:
    """Returns whether a JPEG's first scan holds all of it, and its pixels (0: not found).

    Anything unusual before the first scan counts as a no.
    """
    position, num_components, num_pixels, is_plain = 2, 0, 0, False
    for _ in range(MAX_SEGMENTS):
        if position + 10 > len(data) or data[position] != 0xFF:
            return False, num_pixels
        marker = data[position + 1]
        if marker == 0xDA:
            return is_plain and data[position + 4] == num_components, num_pixels
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (data[position + i : position + i + 2] for i in (5, 7))
            num_pixels = int.from_bytes(height, "big") * int.from_bytes(width, "big")
            num_components, is_plain = data[position + 9], marker in (0xC0, 0xC1)
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE) and not 0xE0 <= marker <= 0xEF:
            return False, num_pixels
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise SampleError("bad_image", f"the JPEG has more than {MAX_SEGMENTS} segments")


def _check_scans(data: bytes, max_scans: int) -> None:
    """Counts the scans of a JPEG's first image; what follows it (a film, another image) is free."""
    position, num_scans, num_segments = 2, 0, 0
    while num_scans <= max_scans:
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            return
        marker = data[position + 1]
        if marker == 0xD9:
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            # Inside a scan, or padding: no length follows.
            position += 1 if marker == 0xFF else 2
            continue
        num_scans += marker == 0xDA
        num_segments += 1
        if num_segments > MAX_SEGMENTS:
            raise SampleError("bad_image", f"the JPEG has more than {MAX_SEGMENTS} segments")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise SampleError("bad_image", f"the JPEG has more than {max_scans} scans")
