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
# Of 8 kB each, as encoders write them, enough for the largest accepted image.
MAX_CHUNKS = 1 << 17


def vet_image(data: bytes) -> str:
    """Returns Pillow's name of an image's format.

    Raises:
        SampleError: `bad_image`: another format, a PNG whose checksums are wrong, or a JPEG with
            an absurd number of scans.
    """
    for name, beginnings in SIGNATURES.items():
        if data.startswith(beginnings) and (name != "WEBP" or data[8:12] == b"WEBP"):
            break
    else:
        raise SampleError("bad_image", f"no image format begins with {data[:12]!r}")
    if name == "PNG":
        _check_chunks(data)
    elif name == "JPEG" and not _has_one_scan(data) and data.count(b"\xff\xda") > MAX_SCANS:
        _check_scans(data)
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


def _has_one_scan(data: bytes) -> bool:
    """Whether a JPEG's first scan holds all of it, as in most photographs.

    Decoders refuse more scans after such a one. Searching a photograph for them takes a tenth of
    the time of decoding it. Anything unusual before the first scan counts as a no.
    """
    position, num_components = 2, 0
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return data[position + 4] == num_components
        if marker in (0xC0, 0xC1):
            num_components = data[position + 9]
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE) and not 0xE0 <= marker <= 0xEF:
            return False
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _check_scans(data: bytes) -> None:
    """Counts the scans of a JPEG's first image; what follows it (a film, another image) is free."""
    position, num_scans = 2, 0
    while num_scans <= MAX_SCANS:
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
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise SampleError("bad_image", f"the JPEG has more than {MAX_SCANS} scans")
