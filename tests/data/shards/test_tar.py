"""Damaged and odd tars, against tarfile, GNU tar, and the numbers written into pairs.

`make soak` goes through 2,000 damaged tars.
"""

import itertools
import os
import random
import re
import shutil
import subprocess
import tarfile
import zlib

import pytest
from fuzzing_tars import HARMLESS_TO_PAIRS, WAYS, random_tar
from watched import run_here, run_watched

from counterpoint.data.errors import CAUSES, SampleError
from counterpoint.data.shards.fields import read_text
from counterpoint.data.shards.members import build_index, open_index
from counterpoint.data.shards.tar import (
    MAX_EXTENSION_BYTES,
    NoEndMark,
    TarDamage,
    _pax_records,
    walk_members,
)

NUM_SAMPLES = 6
MAX_MEMORY = 256


def walked(path) -> tuple[list[tuple[str, int, int]], str]:
    """Returns our members and what stopped the walk."""
    members = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for member in walk_members(descriptor, os.fstat(descriptor).st_size):
            members.append(member)
    except NoEndMark:
        return members, ""
    except TarDamage as damage:
        return members, str(damage)
    finally:
        os.close(descriptor)
    return members, ""


def listed(path) -> list[tuple[str, int, int]]:
    """Returns tarfile's regular files up to the first place that it cannot read."""
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            # Without a bound it may walk in circles when a size is negative.
            for info in itertools.islice(tar, 200):
                if info.isreg() and info.sparse is None:
                    members.append((info.name, info.offset_data, info.size))
    # On damage it raises nearly anything.
    except Exception:
        pass
    return members


def agrees(ours, theirs, damage: str) -> None:
    """Both list the same members from the start; we stop short of tarfile only at damage."""
    for (name, *place), (their_name, *their_place) in zip(ours, theirs, strict=False):
        assert place == their_place
        # tarfile applies a ustar prefix in any format, and drops slashes at the end.
        assert their_name.rstrip("/").endswith(name.rstrip("/"))
    assert damage or len(ours) >= len(theirs)


@pytest.mark.parametrize("seed", range(40))
def test_undamaged_tars_are_listed_as_tarfile_lists_them(tmp_path, seed):
    path = tmp_path / "a.tar"
    path.write_bytes(random_tar(random.Random(seed)))
    assert walked(path) == (listed(path), "")


def read_all(path) -> list[tuple[str, str, str]]:
    """Returns (status, image's number, caption's number) of each of the six samples."""
    descriptor = os.open(path, os.O_RDONLY)
    results = []
    try:
        index = build_index(descriptor, os.fstat(descriptor).st_size)
        for ordinal in range(max(NUM_SAMPLES, len(index))):
            try:
                raw = index.read(descriptor, ordinal)
                text = read_text(raw, "txt")
                if text is None:
                    raise SampleError("no_caption")
                if "jpg" not in raw:
                    raise SampleError("no_image")
                if not raw["jpg"].startswith(b"image"):
                    raise SampleError("bad_image")
            except SampleError as error:
                assert error.cause in CAUSES
                results.append((error.cause, "", ""))
            else:
                shown = re.match(rb"image (\d)", raw["jpg"])
                results.append(("read", shown and shown[1].decode(), text[8:]))
    finally:
        os.close(descriptor)
    return results


def damaged(number: int, folder) -> str:
    """Damages a tar; checks the listing, and that no image gets another's caption."""
    rng = random.Random(number)
    data = random_tar(rng, NUM_SAMPLES)
    ways = [rng.choice(WAYS) for _ in range(rng.choice([1, 1, 2]))]
    for way in ways:
        data = way(data, rng) if len(data) > 1024 else data
    path = folder / "damaged.tar"
    path.write_bytes(data)
    ours, damage = walked(path)
    agrees(ours, listed(path), damage)
    results = read_all(path)
    assert len(results) >= NUM_SAMPLES
    if set(ways) <= set(HARMLESS_TO_PAIRS):
        assert all(image == text for status, image, text in results if status == "read")
    return "/".join(sorted({status for status, _, _ in results}))


def causes(report) -> set[str]:
    return {cause for key in report.outcomes for cause in key.split("/")}


def test_a_sample_of_damaged_tars(tmp_path):
    report = run_here(lambda number: damaged(number, tmp_path), 150)
    assert {"read", "shard_truncated", "no_image", "no_caption"} <= causes(report)
    assert report.memory < MAX_MEMORY


@pytest.mark.soak
def test_two_thousand_damaged_tars(tmp_path):
    report = run_watched(lambda number: damaged(number, tmp_path), 2000)
    print(report)
    assert sum(report.outcomes.values()) == 2000
    assert {"read", "shard_truncated", "no_image", "no_caption", "wrong_count"} <= causes(report)
    assert report.memory < MAX_MEMORY


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_of_gnu_tar_are_passed_over(tmp_path, form):
    """They count as missing, and what follows is found."""
    program = shutil.which("tar")
    if (
        program is None
        or b"GNU tar" not in subprocess.run([program, "--version"], capture_output=True).stdout
    ):
        pytest.skip("needs GNU tar")
    with open(tmp_path / "a.jpg", "wb") as file:
        for place in range(0, 40 << 16, 1 << 16):
            file.seek(place)
            file.write(b"x" * 5000)
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "b.jpg").write_bytes(b"image")
    (tmp_path / "b.txt").write_text("b text")
    options = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    names = ["a.jpg", "a.txt", "b.jpg", "b.txt"]
    command = [program, "-C", str(tmp_path), "--sparse", *options, "-cf", str(tmp_path / "s.tar")]
    subprocess.run([*command, *names], check=True)
    with tarfile.open(tmp_path / "s.tar") as tar:
        expected = [(i.name, i.offset_data, i.size) for i in tar if i.sparse is None]
        assert len(expected) == 3, "the file system keeps no holes"
    assert walked(tmp_path / "s.tar") == (expected, "")


def header(name: bytes = b"a.txt", size: bytes = b"0", kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(content: bytes, kind: bytes = b"x") -> bytes:
    padded = content + bytes(-len(content) % 512)
    return header(b"ext", b"%o" % len(content), kind) + padded


def record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
    return b"%d%s" % (length, rest)


GOOD = header(b"a.jpg", b"3") + b"abc".ljust(512, b"\0") + header(b"b.txt")


@pytest.mark.parametrize(
    "bad",
    [
        extension(record(b"size", b"9" * 5000)),
        extension(record(b"size", b"-512")),
        extension(record(b"size", b"1e3")),
        extension(record(b"path", b"a\0b")),
        extension(record(b"path", b"p" * 5000)),
        extension(b"l" * 5000, b"L"),
        extension(b"99 path=x\n"),
        extension(b"0 path=x\n"),
        extension(b"no record"),
        extension(bytes(300)),
        extension(bytes(300), b"L"),
        extension(record(b"path", b"all.txt"), b"g"),
        header(b"e", b"%o" % (MAX_EXTENSION_BYTES + 1), b"x") + bytes(MAX_EXTENSION_BYTES + 512),
        header(b"e", b"\x80" + b"\xff" * 11),
        header(b"e", b"\xff" * 12),
        header(b"e", b"1_0"),
        bytes(512),
        bytes(8192),
    ],
)
def test_damage_ends_the_tar_where_it_stands(tmp_path, bad):
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + bad + header(b"c.txt") + bytes(1024))
    members, damage = walked(path)
    assert [name for name, _, _ in members] == ["a.jpg", "b.txt"]
    assert damage
    descriptor = os.open(path, os.O_RDONLY)
    index = build_index(descriptor, path.stat().st_size)
    os.close(descriptor)
    # The sample before the damage may have lost members.
    assert index.keys == ["a"] and index.damaged == damage


def test_extended_headers_are_read_once(tmp_path):
    """A mebibyte of useless records, three times."""
    useless = b"".join(record(b"%d" % number, b"") for number in range(90_000))[: 1 << 20]
    useless = useless[: useless.rindex(b"\n") + 1]
    path = tmp_path / "a.tar"
    path.write_bytes(extension(useless) * 3 + extension(record(b"path", b"x.txt")) + header())
    assert [name for name, _, _ in walked(path)[0]] == ["x.txt"]
    # More than a tar may hold: with the square of its length, this would take an hour.
    assert _pax_records(useless * 16, 0) == {}


def test_a_tar_without_end_mark_is_judged_by_its_last_sample(tmp_path, make_tar):
    def opened(names):
        data = b"".join(header(name.encode()) for name in names)
        path = tmp_path / "a.tar"
        path.write_bytes(data)
        descriptor = os.open(path, os.O_RDONLY)
        index = build_index(descriptor, len(data))
        os.close(descriptor)
        return index.keys, bool(index.damaged)

    assert opened(["a.jpg", "a.txt", "b.jpg", "b.txt"]) == (["a", "b"], False)
    assert opened(["a.jpg", "a.txt", "b.jpg"]) == (["a"], True)
    assert opened(["a.jpg", "a.txt", "b.jpg", "b.txt", "b.json"]) == (["a", "b"], False)
    assert opened([]) == ([], True)


def test_an_index_beside_the_tar_is_only_believed_if_it_can_be_right(tmp_path, make_tar):
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"xyz"), ("a.txt", b"t"), ("b.jpg", b"u")])
    descriptor = os.open(path, os.O_RDONLY)
    expected = open_index(path, descriptor)
    beside = tmp_path / "a.tar.index"
    good = beside.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        changed = bytearray(good)
        if rng.random() < 0.5:
            changed[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        else:
            del changed[rng.randrange(len(good)) :]
        beside.write_bytes(changed)
        index = open_index(path, descriptor)
        assert index.offsets.tolist() == expected.offsets.tolist()
        assert (index.keys, index.extensions) == (expected.keys, expected.extensions)
    os.close(descriptor)


def test_a_forged_index_does_no_harm(tmp_path, make_tar):
    """Its checksum is right, its contents are not: at worst the wrong bytes of this tar."""
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"xyz"), ("a.txt", b"t"), ("b.jpg", b"u")])
    descriptor = os.open(path, os.O_RDONLY)
    open_index(path, descriptor)
    beside = tmp_path / "a.tar.index"
    good = beside.read_bytes()
    start = good.index(b"\n") + 1
    rng = random.Random(0)
    for _ in range(150):
        body = bytearray(good[start + 4 :])
        for _ in range(rng.randint(1, 3)):
            body[rng.randrange(len(body))] = rng.choice([0, 1, 0x22, 0x5B, 0x7F, 0x80, 0xFF])
        checksum = zlib.crc32(body).to_bytes(4, "little")
        beside.write_bytes(good[:start] + checksum + body)
        index = open_index(path, descriptor)
        for ordinal in range(len(index)):
            assert index.read(descriptor, ordinal)["__key__"] == index.keys[ordinal]
    os.close(descriptor)
