"""Tars in every format, and ways to damage them.

In: a generator. Out: the bytes of a tar, and of damaged ones. The pairs in it can be told apart:
caption and image name the same number.
"""

import io
import random
import tarfile

BLOCK = 512
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
PREFIXES = ["", "part.1/", "../../", "/", "ünï/", "x" * 60 + "/" + "y" * 60 + "/", "long/" * 40]


def random_tar(rng: random.Random, num_samples: int = 6) -> bytes:
    """Returns a tar with `num_samples` pairs `NUMBER.jpg`, `NUMBER.txt`, and what may lie between.

    An image is `image NUMBER` and zeros, a caption `caption NUMBER`.
    """
    form = rng.choice(FORMATS)
    prefix = rng.choice(PREFIXES[:4] if form == tarfile.USTAR_FORMAT else PREFIXES)
    buffer = io.BytesIO()
    # Only pax has headers for all members.
    headers = {"comment": "für alle"} if form == tarfile.PAX_FORMAT and rng.random() < 0.3 else None
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=headers) as tar:
        for number in range(num_samples):
            if rng.random() < 0.3:
                _add_oddity(tar, rng)
            key = f"{prefix}{number:03d}"
            image = b"image %d" % number + bytes(rng.choice([0, 1, 500, 502, 503, 2000]))
            for extension, content in [("jpg", image), ("txt", b"caption %d" % number)]:
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                info.mtime = rng.choice([0, 1, 1.5, 2**34])
                if form == tarfile.USTAR_FORMAT:
                    info.mtime = 0
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _add_oddity(tar: tarfile.TarFile, rng: random.Random) -> None:
    """Adds what is no member of a sample."""
    info = tarfile.TarInfo(rng.choice(["folder", "link.jpg", "__note__", "no extension", "ü" * 40]))
    kinds = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE]
    info.type = rng.choice(kinds)
    info.linkname = rng.choice(["/etc/passwd", "000.jpg", "z" * 90])
    tar.addfile(info)


def headers_of(data: bytes) -> list[int]:
    """Returns where headers begin, pax and long-name headers included; at least one place."""
    magics = range(0, max(BLOCK, len(data) - BLOCK + 1), BLOCK)
    return [place for place in magics if data[place + 257 : place + 262] == b"ustar"] or [0]


def flip_header(data: bytes, rng: random.Random) -> bytes:
    """Flips bits of headers and of what follows a pax or long-name header."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(headers_of(data))
        extends = data[place + 156 : place + 157] in b"xgLK"
        place += rng.randrange(BLOCK) + (BLOCK if extends and rng.random() < 0.7 else 0)
        changed[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutate_field(data: bytes, rng: random.Random) -> bytes:
    """Puts nonsense into a header field and makes the checksum right again."""
    changed = bytearray(data)
    place = rng.choice(headers_of(data))
    first, last, values = rng.choice(
        [
            (0, 100, [b"", b"a" * 100, b"\xff\xfe.jpg", b"a\0b.jpg", b"x/", b"../../../etc/x.jpg"]),
            (100, 108, [b"\xff" * 8, b"9" * 8, b"-1"]),
            (124, 136, [b"7" * 12, b"\x80" + b"\xff" * 11, b"0", b"-1", b"+10", b"\x810", b"1_0"]),
            (
                124,
                136,
                [b"\x80" + bytes(9) + b"\x02\0", b"1000 \0junk", b" 777", b"0o7", b"\0" * 12],
            ),
            (156, 157, [b"%c" % kind for kind in b"\x000123456789xgXLKSDMNV~\xff"]),
            (257, 265, [b"ustar\x0000", b"ustar  \0", b"", b"\xff" * 8]),
            (345, 500, [b"pre", b"/" * 155, b"\xff" * 155]),
            (482, 483, [b"\x01"]),
        ]
    )
    changed[place + first : place + last] = rng.choice(values).ljust(last - first, b"\0")
    changed[place + 148 : place + 156] = b" " * 8
    total = sum(changed[place : place + BLOCK])
    changed[place + 148 : place + 156] = b"%06o\0 " % total
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[: rng.choice([place, place // BLOCK * BLOCK])]


def zero_blocks(data: bytes, rng: random.Random) -> bytes:
    """Zeros in place of some blocks, as a crashed disk leaves them."""
    first = rng.randrange(len(data) // BLOCK)
    last = min(first + rng.choice([1, 2, 8]), len(data) // BLOCK)
    return data[: first * BLOCK] + bytes((last - first) * BLOCK) + data[last * BLOCK :]


def move_blocks(data: bytes, rng: random.Random) -> bytes:
    """Repeats, removes or moves a stretch of blocks, or of bytes."""
    unit = rng.choice([1, BLOCK])
    first, second, third = sorted(rng.randrange(len(data) // unit) * unit for _ in range(3))
    rest = rng.choice([data, data[:first] + data[second:]])
    return rest[:third] + data[first:second] * rng.choice([0, 1]) + rest[third:]


def garbage(data: bytes, rng: random.Random) -> bytes:
    """Random bytes from some place on."""
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.choice([1, 600, 5000]))


# Of these, the first leave members' bytes and order alone: no pair may be mixed up.
HARMLESS_TO_PAIRS = [flip_header, cut, zero_blocks]
WAYS = [*HARMLESS_TO_PAIRS, mutate_field, move_blocks, garbage]
