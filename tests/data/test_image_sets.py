"""Image sets: order, fields, selection by them, and error messages."""

import io
import json
import os
import tarfile

import pytest
import torch
from PIL import Image

from counterpoint.data.errors import SampleError
from counterpoint.data.image_sets import FolderSet, ShardSet
from counterpoint.data.images.decode import decode_image
from counterpoint.data.shards.fields import find_image
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.reader import ShardReader


def png(colour) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(out, "PNG")
    return out.getvalue()


def write_tar(path, members: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, colour=(0, 0, 0), **texts) -> dict[str, bytes]:
    """Members of one sample; a dict becomes JSON."""
    members = {f"{key}.png": png(colour)}
    for extension, text in texts.items():
        text = json.dumps(text) if isinstance(text, dict) else text
        members[f"{key}.{extension}"] = text.encode()
    return members


def shards(root, urls="*.tar"):
    images = ShardSet(urls)
    images.root = root
    return images


@pytest.fixture
def two_shards(tmp_path):
    write_tar(
        tmp_path / "b.tar",
        sample("k2", (2, 0, 0), txt="one\n\n two ", json={"style": "flat", "n": 7}),
    )
    write_tar(
        tmp_path / "a.tar",
        sample("k0", (0, 0, 0), txt="zero", cls="4", json={"style": "round", "deep": {"x": "y"}})
        | sample("k1", (1, 0, 0), txt="one", json={"style": "flat", "txt": "from json"})
        | {"noimage.txt": b"skipped"},
    )
    return tmp_path


def test_folders_are_classes_in_sorted_order(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/x/1.PNG", "a/notes.md", "a/.hidden.png", "top.jpg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png((len(name), 0, 0)))
    (tmp_path / "set/b/2.txt").write_text("two\n")
    (tmp_path / "set/b/2.json").write_text('{"style": "flat"}')
    images = FolderSet("set")
    images.root = tmp_path
    keys = [item.get("key") for item in images.items]
    assert keys == ["top.jpg", "a/x/1.PNG", "b/10.png", "b/2.png"]
    assert images.values("folder", [1, 2, 3]) == ["a", "b", "b"]
    assert images.items[0].get("folder") is None
    assert images.items[3].get("txt") == "two"
    assert images.select({"style": "flat"}) == [3]
    assert images.image(2)[:, 0, 0].tolist() == [len("b/10.png"), 0, 0]


def test_links_to_class_folders_are_followed_and_end(tmp_path):
    """Subsets of a large set are often folders of links."""
    for name in ("all/cat/x/1.png", "all/dog/1.png", "val/dog/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png((0, 0, 0)))
    os.symlink("../all/cat", tmp_path / "val/cat")
    os.symlink("../all/cat", tmp_path / "val/feline")
    os.symlink(tmp_path / "val", tmp_path / "val/dog/again")
    os.symlink("..", tmp_path / "all/cat/x/up")
    images = FolderSet("val")
    images.root = tmp_path
    keys = [item.get("key") for item in images.items]
    assert keys == ["cat/x/1.png", "dog/2.png", "feline/x/1.png"]
    assert images.values("folder", range(3)) == ["cat", "dog", "feline"]
    assert images.image(0).shape == (3, 3, 4)


def test_of_several_images_evaluation_takes_the_one_of_training(tmp_path):
    kinds = ("webp", "png", "jpeg", "jpg", "gif")
    members = [
        {f"k{n}.{kind}": png((kinds.index(kind), 0, 0)) for kind in kinds[n:] + kinds[:n]}
        for n in range(5)
    ]
    members.append({f"k5.{kind}": png((kinds.index(kind), 0, 0)) for kind in ("gif", "webp")})
    write_tar(tmp_path / "a.tar", {name: data for m in members for name, data in m.items()})
    images = shards(tmp_path)
    reader = ShardReader([str(tmp_path / "a.tar")])
    for number in range(6):
        trained = decode_image(find_image(reader.read(0, number)))
        assert torch.equal(images.image(number), trained)
        assert trained[0, 0, 0] == (3 if number < 5 else 0)


def test_shards_hold_members_and_json_as_fields(two_shards):
    images = shards(two_shards)
    assert [item.get("key") for item in images.items] == ["k0", "k1", "k2"]
    assert [images.image(i)[0, 0, 0].item() for i in range(3)] == [0, 1, 2]
    assert images.image(0).shape == (3, 3, 4)
    assert images.values("txt", [0, 1]) == ["zero", "one"]  # the member wins over the JSON entry
    assert images.items[0].get("cls") == "4"
    assert images.values("deep.x", [0]) == ["y"]
    assert images.values("n", [2]) == ["7"]


def test_urls_are_patterns_braces_folders_lists_and_manifests(two_shards):
    index_shards([str(two_shards / "b.tar")], two_shards / "m.parquet")
    for urls, expected in {
        "a.tar": ["k0", "k1"],
        "{b,a}.tar": ["k2", "k0", "k1"],
        ".": ["k0", "k1", "k2"],
        "m.parquet": ["k2"],
        str(two_shards / "?.tar"): ["k0", "k1", "k2"],
    }.items():
        assert [item.get("key") for item in shards(two_shards, urls).items] == expected, urls
    assert len(shards(two_shards, ["b.tar", "*.tar"])) == 3


def test_select_takes_values_and_lists_of_values(two_shards):
    images = shards(two_shards)
    assert images.select(None) == [0, 1, 2]
    assert images.select({"style": "flat"}) == [1, 2]
    assert images.select({"style": ["flat", "round"], "n": 7}) == [2]
    with pytest.raises(ValueError, match=r"no image where style is oil; found there: flat, round"):
        images.select({"style": "oil"})


def test_captions_come_as_lines_or_json_lists(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        sample("k0", txt="one\n\n two ", json={"many": ["x", "y "]})
        | sample("k1", txt="three", json={"many": []}),
    )
    images = shards(tmp_path)
    assert images.lists("txt", [0, 1], None) == [["one\n\n two"], ["three"]]
    assert images.lists("txt", [0, 1], "\n") == [["one", "two"], ["three"]]
    assert images.lists("many", [0], None) == [["x", "y"]]
    with pytest.raises(ValueError, match=r"sample k1 in .*a\.tar has no caption 'many'; fields"):
        images.lists("many", [0, 1], None)


def test_a_label_is_one_value(two_shards):
    images = shards(two_shards)
    with pytest.raises(ValueError, match=r"sample k1 .* has no field 'cls'; name a field"):
        images.values("cls", [0, 1])
    with pytest.raises(ValueError, match=r"sample k0 .* has deep: \{'x': 'y'\}"):
        images.values("deep", [0])


def test_data_that_cannot_be_used_gets_a_sentence(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", sample("k", txt="t")).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:540])
    write_tar(tmp_path / "empty.tar", {"k.txt": b"no image"})
    write_tar(
        tmp_path / "latin.tar", {"k.png": png((0, 0, 0)), "k.txt": "caf\xe9".encode("latin1")}
    )
    (tmp_path / "bare").mkdir()
    for urls, message in {
        "none-*.tar": r"none-\*\.tar does not exist or matches nothing; .* data_root",
        "bare": r"bare does not exist or matches nothing",
        "cut.tar": r"the shard .*cut\.tar is damaged: .*; write or copy it again",
        "empty.tar": r"holds no images",
        "latin.tar": r"what lies beside image k in .*latin\.tar is not UTF-8",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            shards(tmp_path, urls).items  # noqa: B018
        assert "\n" not in str(caught.value)
    folder = FolderSet("absent")
    folder.root = tmp_path
    with pytest.raises(ValueError, match=r"absent does not exist"):
        folder.items  # noqa: B018


def test_a_broken_image_is_a_sample_error(tmp_path):
    write_tar(tmp_path / "a.tar", {"k.png": b"not an image"})
    with pytest.raises(SampleError):
        shards(tmp_path).image(0)


def test_transparent_parts_are_white(tmp_path):
    out = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(out, "PNG")
    write_tar(tmp_path / "a.tar", {"k.png": out.getvalue()})
    assert torch.equal(shards(tmp_path).image(0), torch.full((3, 2, 2), 255, dtype=torch.uint8))
