"""The header walk against the standard library's tarfile and webdataset's own reader."""

import io
import itertools
import os
import re
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.compat import WebDataset
from webdataset.tariterators import base_plus_ext
from webdataset.writer import ShardWriter

from counterpoint.data.errors import SampleError
from counterpoint.data.shards import members as module
from counterpoint.data.shards.members import build_index, open_index, split_name, walk_members


def walk(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(walk_members(descriptor, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def index_of(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return build_index(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


NAMES = [
    "a.txt",
    "folder/b.jpg",
    "x" * 99 + ".txt",
    "long/" + "y" * 140 + ".txt",
    "deep/" * 60 + "z.txt",
    "ünïcödé/näme.txt",
    "späced name.with.dots.png",
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walk_equals_tarfile(tmp_path, make_tar, form):
    names = NAMES[:4] if form == tarfile.USTAR_FORMAT else NAMES
    names = [name for name in names if form != tarfile.USTAR_FORMAT or len(name) < 100]
    rng, sizes = np.random.default_rng(0), [0, 1, 511, 512, 513, 5000, 9]
    contents = [(name, rng.bytes(size)) for name, size in zip(names, sizes, strict=False)]
    path = make_tar(tmp_path / "a.tar", contents, form)
    with tarfile.open(path) as tar:
        expected = [(i.name, i.offset_data, i.size) for i in tar.getmembers()]
    assert walk(path) == expected
    assert [name for name, _, _ in expected] == names


def test_what_is_not_a_regular_file_is_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"}) as tar:
        for name, kind in [
            ("folder", tarfile.DIRTYPE),
            ("soft.txt", tarfile.SYMTYPE),
            ("hard.txt", tarfile.LNKTYPE),
            ("pipe.txt", tarfile.FIFOTYPE),
            ("device.txt", tarfile.CHRTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("file.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert [name for name, _, _ in walk(path)] == ["file.txt"]


def test_sparse_members_are_passed_over_not_misread(tmp_path):
    """A GNU sparse header (type S), whose stored bytes are not the file's bytes."""
    info = tarfile.TarInfo("holes.jpg")
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[482] = 1  # one more block of the map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    after = tarfile.TarInfo("after.txt")
    after.size = 2
    tar = bytes(header) + bytes(512) + b"d" * 512 + after.tobuf() + b"ok".ljust(512, b"\0")
    path = tmp_path / "a.tar"
    path.write_bytes(tar + bytes(1024))
    assert walk(path) == [("after.txt", 2048, 2)]


def test_sizes_beyond_eight_gigabytes(tmp_path):
    """The binary size field; the file itself has a hole, so it takes no room."""
    info = tarfile.TarInfo("big.bin")
    info.size = 9 * 2**30
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + 1024)
    assert walk(path) == [("big.bin", 512, 9 * 2**30)]


@given(st.text(alphabet="ab./_-é", min_size=1, max_size=12))
def test_names_split_as_webdataset_splits_them(name):
    key, extension = base_plus_ext(name)
    skipped = "/" not in name and name.startswith("__") and name.endswith("__")
    if key is None or extension is None or skipped:
        assert split_name(name) is None
    else:
        assert split_name(name) == (key, extension.lower())


def test_every_short_name_splits_as_the_regular_expression_says():
    rule = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
    for length in range(7):
        for name in map("".join, itertools.product("a./\n", repeat=length)):
            found = rule.fullmatch(name)
            assert split_name(name) == (found.groups() if found else None), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/" * (1 << 23), None),
        ("a/" * (1 << 22) + "b.C", ("a/" * (1 << 22) + "b", "c")),
        ("." * (1 << 23), None),
        ("/." * (1 << 22), None),
    ],
    ids=["slashes", "folders", "dots", "both"],
)
def test_a_hostile_name_is_read_once(name, expected):
    """With the square of its length, as by WebDataset's expression, this would take days."""
    assert split_name(name) == expected


def test_samples_equal_webdatasets_grouping(tmp_path):
    pattern = str(tmp_path / "%05d.tar")
    with ShardWriter(pattern, maxcount=100, verbose=0) as writer:
        for number in range(10):
            sample = {"__key__": f"part.{number}/k{number}", "txt": f"text {number}"}
            writer.write(sample | {"JPG": b"j" * number, "seg.png": b"s"})
    path = str(tmp_path / "00000.tar")
    index = index_of(path)
    expected = list(WebDataset(path, shardshuffle=False))
    assert index.keys == [sample["__key__"] for sample in expected]
    for number, sample in enumerate(expected):
        kinds = index.kinds[index.firsts[number] : index.firsts[number + 1]]
        found = {index.extensions[kind] for kind in kinds}
        assert found == {name for name in sample if not name.startswith("__")}


def test_a_second_member_of_one_kind_begins_another_sample(tmp_path, make_tar):
    names = ["a.txt", "a.jpg", "a.txt", "b.txt", "a.jpg"]
    index = index_of(make_tar(tmp_path / "a.tar", [(name, b"") for name in names]))
    assert index.keys == ["a", "a", "b", "a"]
    assert index.firsts.tolist() == [0, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def good_tar(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            for extension in ("jpg", "txt"):
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = 300 * number
                tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    return path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_tar_cut_anywhere_keeps_only_whole_samples(tmp_path, good_tar, data):
    whole = index_of(good_tar)
    end = int(whole.offsets[-1] + whole.sizes[-1])
    length = data.draw(st.integers(1, end - 1))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good_tar.read_bytes()[:length])
    index = index_of(cut)
    assert len(index) < len(whole) or not index.damaged
    for number in range(len(index)):
        first, last = index.firsts[number : number + 2]
        # Without damage the cut is between two members, which looks like the tar's end.
        if index.damaged or number < len(index) - 1:
            assert last - first == 2
        assert index.offsets[last - 1] + index.sizes[last - 1] <= length


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 8000), byte=st.integers(0, 255))
def test_a_changed_byte_never_crashes_the_walk(tmp_path, good_tar, place, byte):
    content = bytearray(good_tar.read_bytes())
    content[place] = byte
    path = tmp_path / "changed.tar"
    path.write_bytes(content)
    index = index_of(path)
    ends = index.offsets + index.sizes
    assert (ends <= len(content)).all()
    assert len(index.keys) == len(index.firsts) - 1


def test_the_index_is_kept_beside_the_tar_and_follows_it(tmp_path, make_tar, make_pairs):
    def opened():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return open_index(path, descriptor)
        finally:
            os.close(descriptor)

    path = make_tar(tmp_path / "a.tar", make_pairs(0, 4))
    first = opened()
    beside = tmp_path / "a.tar.index"
    written = beside.stat().st_mtime_ns
    again = opened()
    assert beside.stat().st_mtime_ns == written
    for name in ("firsts", "offsets", "sizes", "kinds"):
        assert getattr(again, name).tolist() == getattr(first, name).tolist()
    assert (again.keys, again.extensions) == (first.keys, first.extensions)

    make_tar(tmp_path / "a.tar", make_pairs(0, 2))
    assert len(opened()) == 2
    beside.write_bytes(beside.read_bytes()[:100])
    assert len(opened()) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "a.tar.index"]


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path, make_tar, monkeypatch):
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"x")])

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(module.os, "replace", refuse)
    descriptor = os.open(path, os.O_RDONLY)
    assert open_index(path, descriptor).keys == ["a"]
    os.close(descriptor)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def read_all(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        index = build_index(descriptor, os.fstat(descriptor).st_size)
        return [index.read(descriptor, ordinal) for ordinal in range(len(index))]
    finally:
        os.close(descriptor)


def test_names_are_keys_and_nothing_else(tmp_path, make_tar):
    """Nothing is written under them, and none can take the place of the sample's own entries."""
    folder = tmp_path / "deep" / "shards"
    folder.mkdir(parents=True)
    names = ["../../x.jpg", "../../x.txt", "/etc/y.jpg", "z.__key__", "__a__/b.jpg", "n\n.jpg"]
    path = make_tar(folder / "a.tar", [(name, b"data") for name in names])
    assert read_all(path) == [
        {"__key__": "../../x", "jpg": b"data", "txt": b"data"},
        {"__key__": "/etc/y", "jpg": b"data"},
        {"__key__": "z"},
        {"__key__": "n\n", "jpg": b"data"},
    ]
    assert [p.name for p in tmp_path.rglob("*")] == ["deep", "shards", "a.tar"]


def test_a_sample_that_does_not_fit_into_memory_is_not_read(tmp_path):
    """The file is a hole of 300 MB: it takes no room."""
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        for name, size in [("a.jpg", module.MAX_SAMPLE_BYTES + 1), ("b.txt", 2)]:
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf())
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        file.truncate(file.tell() + 1024)
    descriptor = os.open(path, os.O_RDONLY)
    index = build_index(descriptor, os.fstat(descriptor).st_size)
    with pytest.raises(SampleError, match="too_large"):
        index.read(descriptor, 0)
    assert index.read(descriptor, 1) == {"__key__": "b", "txt": bytes(2)}
    os.close(descriptor)


def test_members_far_apart_are_read_one_by_one(tmp_path):
    """Between two members of a sample lies one that is passed over, larger than any sample."""
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        for name, data, size in [
            ("a.jpg", b"abc", 3),
            ("no extension", b"", module.MAX_SAMPLE_BYTES),
            ("a.txt", b"d", 1),
        ]:
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf() + data)
            file.seek(-(-size // 512) * 512 - len(data), os.SEEK_CUR)
        file.truncate(file.tell() + 1024)
    assert read_all(path) == [{"__key__": "a", "jpg": b"abc", "txt": b"d"}]
