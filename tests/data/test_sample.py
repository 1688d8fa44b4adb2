"""Samples: replaced by rule, replayed from what was recorded, joined with what lies beside them."""

import json
import os
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recipes import loader, recipe

from counterpoint.data import sample as module
from counterpoint.data.errors import CAUSES
from counterpoint.data.images.decode import EncodedImage
from counterpoint.data.images.transforms import EvalTransform, TrainTransform
from counterpoint.data.order.selection import LossWeights, Selection
from counterpoint.data.recipe import View
from counterpoint.data.render import Randomness
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import SCHEMA, Manifest
from counterpoint.data.sidecar import Sidecar, write_sidecar
from counterpoint.data.text.captions import FirstFound, WeightedChoice

FULL = TrainTransform(flip=0.5, rotate=10, brightness=0.2, contrast=0.2, saturation=0.2, erase=0.2)


@pytest.fixture
def manifest(shards, tmp_path):
    return index_shards(shards, tmp_path / "m.parquet")


def test_images_wait_for_the_transform_within_bounds(manifest, monkeypatch):
    waiting, most = [], []

    class Watching(TrainTransform):
        def factor(self, *args):
            waiting.append(1)
            return super().factor(*args)

        def apply(self, *args):
            most.append(len(waiting))
            waiting.clear()
            return super().apply(*args)

    places = [(0, 0, ordinal % 7) for ordinal in range(21)]
    expected, _ = loader(manifest, FULL).load(places)
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 5 * 3 * 20 * 24)
    arguments = {name: getattr(FULL, name) for name in ("flip", "rotate", "brightness", "erase")}
    colours = {name: getattr(FULL, name) for name in ("contrast", "saturation")}
    batch, _ = loader(manifest, Watching(**arguments, **colours)).load(places)
    assert max(most) == 6
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_files_are_read_ahead_within_bounds(broken, monkeypatch):
    """And those of images that are made are let go of."""
    opened, most, original = [], [], EncodedImage.open

    def watched(data):
        opened.append(weakref.ref(image := original(data)))
        found = [reference() for reference in opened]
        most.append(sum(image.file_bytes for image in found if image is not None))
        return image

    manifest, bad = broken
    places = [(0, shard, ordinal) for shard in range(5) for ordinal in range(6)]
    expected, texts = loader(manifest, FULL).load(places)
    monkeypatch.setattr(EncodedImage, "open", staticmethod(watched))
    loader(manifest, FULL).load(places)
    largest, whole = max(most[0], *np.diff(most)), max(most)
    assert whole > 20 * 500
    opened.clear()
    most.clear()
    monkeypatch.setattr(module, "MAX_READ_BYTES", whole // 4)
    batch, again = loader(manifest, FULL).load(places)
    assert whole // 4 < max(most) <= whole // 4 + 2 * largest
    assert again == texts and all(torch.equal(batch[name], expected[name]) for name in expected)
    assert [CAUSES[code] for code in batch["status"]] == [bad.get(p[1:], "read") for p in places]


def test_a_sample_has_the_stream_of_its_own_generator():
    randomness = Randomness()
    for words in [(1, -2), (-(2**63), 2**63 - 1), (1, -2)]:
        generator = randomness.start(*words)
        key = np.array(words, dtype=np.int64).view(np.uint64)
        fresh = np.random.Generator(np.random.Philox(key=key))
        # 3 numbers leave a part of a block over, 32-bit draws half a number.
        assert generator.random(3).tolist() == fresh.random(3).tolist()
        assert generator.integers(0, 9, 3, dtype=np.uint32).tolist() == (
            fresh.integers(0, 9, 3, dtype=np.uint32).tolist()
        )


@pytest.mark.parametrize("decode", ["exact", "dct"])
def test_recorded_draws_give_the_image_again(make_tar, make_image, tmp_path, decode):
    files = {f"{n}": make_image(n, 150, 200 + n, "JPEG", quality=95) for n in range(6)}
    members = [(f"{key}.jpg", data) for key, data in files.items()]
    members += [(f"{key}.txt", key.encode()) for key in files]
    tar = make_tar(tmp_path / "0.tar", sorted(members))
    manifest = index_shards([tar], tmp_path / "m.parquet")
    options = {"flip": 0.5, "rotate": 20, "hue": 0.1, "erase": 0.5, "decode": decode}
    transform = TrainTransform(scale=(0.9, 1.0), **options)
    samples = loader(manifest, transform, size=64)
    batch, texts = samples.load([(0, 0, ordinal) for ordinal in range(6)])
    for row, text in enumerate(texts["text"]):
        params = batch["image.augmentation"][row].numpy()
        assert params.shape == (len(transform.columns),)
        again = transform.apply(EncodedImage.open(files[text]), 64, params)
        assert torch.equal(again, batch["image"][row])
    # Only what the transform needs was decoded.
    image = samples.decode(0, 0, 0).images[None]
    assert image.num_bytes == 3 * (75 * 100 if decode == "dct" else 150 * 200)


def test_bad_samples_are_replaced_by_rule_and_named(broken):
    manifest, bad = broken
    samples = loader(manifest, FULL)
    for shard in range(5):
        for ordinal in range(6):
            sample = samples.decode(0, shard, ordinal)
            assert CAUSES[sample.status] == bad.get((shard, ordinal), "read")
            # Written out: the next good ordinal of the shard, else the same one of the next shard.
            place = (shard, ordinal)
            while place in bad:
                place = (0, ordinal) if shard == 3 else (shard, (place[1] + 1) % 6)
                if shard == 3:
                    places = [(4, (ordinal + step) % 6) for step in range(4)]
                    place = next(p for p in places if p not in bad)
            expected = samples.decode(0, *place)
            assert sample.key == expected.key and sample.texts == expected.texts
            assert torch.equal(sample.images[None].pixels(), expected.images[None].pixels())
            assert np.array_equal(sample.params["image"], expected.params["image"])
    # A batch reads all of its samples before it decodes any.
    places = [(0, shard, ordinal) for shard in range(5) for ordinal in range(6)]
    batch, texts = samples.load(places)
    alone = [samples.load([place]) for place in places]
    assert all(torch.equal(batch[name], torch.cat([b[name] for b, _ in alone])) for name in batch)
    assert texts["text"] == [text for _, t in alone for text in t["text"]]
    assert [CAUSES[code] for code in batch["status"]] == [bad.get(p[1:], "read") for p in places]


def test_replacements_stay_within_the_source(make_tar, make_pairs, tmp_path):
    urls = [make_tar(tmp_path / f"{n}.tar", make_pairs(10 * n, 2)) for n in range(4)]
    os.unlink(urls[0])
    columns = {
        "source": ["a", "b", "a", "b"],
        "url": urls,
        "num_samples": [2, 2, 2, 2],
        "num_bytes": [0] * 4,
        "sha256": [""] * 4,
    }
    manifest = Manifest(pa.table(columns, schema=SCHEMA), tmp_path)
    samples = loader(manifest, FULL)
    texts = [samples.decode(0, 0, ordinal).texts["text"] for ordinal in (0, 1)]
    assert texts == ["image 20", "image 21"]


def test_views_draw_for_themselves_or_as_another_one(manifest):
    views = {
        "image.strong": View(FULL, 8),
        "image.teacher": View(FULL, 32, same_as="image"),
        "image.whole": View(EvalTransform("squash"), 20),
    }
    places = [(0, 0, ordinal) for ordinal in range(5)]
    batch, _ = loader(manifest, FULL, views=views).load(places)
    alone, _ = loader(manifest, FULL).load(places)
    sides = {name: batch[name].shape[-1] for name in ("image", *views)}
    assert sides == {"image": 16, "image.strong": 8, "image.teacher": 32, "image.whole": 20}
    # A further view leaves the first one as it was.
    assert torch.equal(batch["image"], alone["image"])
    assert torch.equal(batch["image.teacher.augmentation"], batch["image.augmentation"])
    differs = batch["image.strong.augmentation"] != batch["image.augmentation"]
    assert differs.any(1).all()
    assert "image.whole.augmentation" not in batch


def test_stored_augmentations_say_all_and_are_checked(manifest, make_image):
    """Another transform of the same class computes the same image from them."""
    full = TrainTransform(
        scale=(0.3, 0.9), rotate=20, translate=0.1, hue=0.2, grayscale=0.3, erase=0.5, flip=0.5
    )
    places = [(0, 0, ordinal) for ordinal in range(7)]
    batch, _ = loader(manifest, full).load(places)
    for row in range(7):
        image = EncodedImage.open(make_image(row))
        params = batch["image.augmentation"][row].numpy()
        assert torch.equal(TrainTransform().apply(image, 16, params), batch["image"][row])
    small = EncodedImage.open(make_image(0, 8, 8))
    with pytest.raises(ValueError, match="does not lie in an image of 8 x 8"):
        TrainTransform().factor(small, 16, params)


def test_optional_texts_are_marked_and_choices_follow_the_epoch(make_tar, make_image, tmp_path):
    members = []
    for number in range(30):
        fields = {"key": str(number), "rewrites": ["a", "b"]} | (
            {"long": "l"} if number % 3 else {}
        )
        members += [(f"{number}.png", make_image(number)), (f"{number}.txt", b"t")]
        members.append((f"{number}.json", json.dumps(fields).encode()))
    manifest = index_shards([make_tar(tmp_path / "0.tar", members)], tmp_path / "m.parquet")
    texts = {
        "long": FirstFound(["json:long"]),
        "any": WeightedChoice({"txt": 1, "json:rewrites": 2}),
    }
    samples = loader(manifest, TrainTransform(), texts=texts)
    epochs = [samples.load([(e, 0, n) for n in range(30)])[1] for e in (0, 0, 1)]
    assert epochs[0] == epochs[1]
    assert epochs[0]["text"] == ["t"] * 30
    assert epochs[0]["text.long"] == ["l" if number % 3 else "" for number in range(30)]
    assert set(epochs[0]["text.any"]) == {"t", "a", "b"}
    assert epochs[0]["text.any"] != epochs[2]["text.any"]


def test_views_of_another_image_are_marked_where_it_is_missing(
    make_tar, make_image, make_pairs, tmp_path
):
    members = []
    for number in range(6):
        own, text, fields = make_pairs(number, 1)
        members += [own, text, fields]
        if number % 3:
            key = own[0].removesuffix(".png")
            members.append((f"{key}.negative.jpg", make_image(100 + number, 30, 40, "JPEG")))
            members.append((f"{key}.negative.txt", f"not {number}".encode()))
    manifest = index_shards([make_tar(tmp_path / "0.tar", members)], tmp_path / "m.parquet")
    views = {"image.negative": View(FULL, member="negative", size=16)}
    texts = {"negative": FirstFound(["negative.txt"])}
    places = [(0, 0, number) for number in range(6)]
    batch, captions = loader(manifest, FULL, views=views, texts=texts).load(places)
    assert batch["image.negative.present"].tolist() == [bool(n % 3) for n in range(6)]
    assert captions["text.negative"] == [f"not {n}" if n % 3 else "" for n in range(6)]
    for number in range(6):
        params = batch["image.negative.augmentation"][number].numpy()
        image = EncodedImage.open(make_image(100 + number, 30, 40, "JPEG"))
        wanted = FULL.apply(image, 16, params) if number % 3 else torch.full((3, 16, 16), 255)
        assert torch.equal(batch["image.negative"][number], wanted)
    # The rest of the batch does not know about the other image.
    alone, _ = loader(manifest, FULL).load(places)
    assert all(torch.equal(batch[name], alone[name]) for name in alone)


def test_a_damaged_second_image_is_a_bad_sample(make_tar, make_pairs, tmp_path):
    members = make_pairs(0, 2)
    members.insert(3, ("000000000.negative.png", b"\x89PNG damaged"))
    manifest = index_shards([make_tar(tmp_path / "0.tar", members)], tmp_path / "m.parquet")
    views = {"image.negative": View(FULL, member="negative", size=16)}
    sample = loader(manifest, FULL, views=views).decode(0, 0, 0)
    assert CAUSES[sample.status] == "bad_image" and sample.texts["text"] == "image 1"


def test_stored_augmentations_are_replayed_with_their_rows(manifest, tmp_path):
    places = [(0, 0, ordinal) for ordinal in range(7)]
    first, _ = loader(manifest, FULL, seed=5).load(places)
    # Two augmentations each, for all but the last sample, and what a teacher made of each of them.
    other, _ = loader(manifest, FULL, seed=6).load(places)
    both = torch.stack([first["image.augmentation"], other["image.augmentation"]], 1)
    columns = {
        "key": first["key"][:6],
        "augmentation": both[:6],
        "embedding": torch.arange(12.0).view(6, 2, 1) + 1,
    }
    write_sidecar(tmp_path / "store", "default", "00000.tar", columns)
    sidecar = Sidecar(
        str(tmp_path / "store"), {"augmentation": "augmentation", "image": "embedding"}, variants=2
    )
    recipe_of = {"sidecars": {"teacher": sidecar}, "seed": 7}
    samples = loader(manifest, FULL, **recipe_of)
    view = View(FULL, 16, same_as="teacher.augmentation")
    samples = module.SampleLoader(
        manifest, samples.reader, recipe(manifest, FULL, views={"image": view}, **recipe_of)
    )
    seen = set()
    for epoch in range(8):
        batch, _ = samples.load([(epoch, shard, ordinal) for _, shard, ordinal in places])
        assert batch["teacher.present"].tolist() == [True] * 6 + [False]
        assert batch["teacher.image"][6] == 0
        for row in range(6):
            variant = int(batch["teacher.image"][row, 0]) - 1 - 2 * row
            seen.add((row, variant))
            assert torch.equal(batch["image"][row], (first, other)[variant]["image"][row])
    assert len(seen) == 12
    own = loader(manifest, FULL, seed=7).load([(7, 0, 6)])[0]
    assert torch.equal(batch["image"][6], own["image"][0])


def test_samples_without_a_row_are_replaced_where_it_is_needed(manifest, tmp_path):
    places = [(0, 0, ordinal) for ordinal in range(7)]
    key = loader(manifest, FULL).load(places)[0]["key"]
    columns = {"key": key[:6], "vector": torch.arange(6.0)[:, None] + 1}
    write_sidecar(tmp_path / "store", "default", "00000.tar", columns)
    sidecar = Sidecar(str(tmp_path / "store"), {"text": "vector"}, missing="replaced")
    batch, _ = loader(manifest, FULL, sidecars={"llm": sidecar}).load(places)
    assert batch["llm.present"].all()
    causes = [CAUSES[code] for code in batch["status"]]
    assert causes == ["read"] * 6 + ["no_row"]
    # The first sample of the shard follows the last.
    assert batch["llm.text"][:, 0].tolist() == [1, 2, 3, 4, 5, 6, 1]
    assert batch["key"][6] == key[0]


def test_kept_samples_alone_are_read_with_their_weights(manifest, tmp_path):
    rows = {
        "shard": ["00000.tar"] * 3 + ["00002.tar"],
        "index": [5, 1, 3, 8],
        "weight": [0.5, 2.0, 1.0, 3.0],
    }
    pq.write_table(pa.table(rows), tmp_path / "keep.parquet")
    selection = Selection.compile(
        [tmp_path / "keep.parquet"], manifest, tmp_path / "compiled", 0, LossWeights()
    )
    samples = loader(manifest, FULL, selection)
    batch, texts = samples.load([(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 2, 0)])
    assert texts["text"] == ["image 1", "image 3", "image 5", "image 20"]
    assert batch["weight"].tolist() == [2.0, 1.0, 0.5, 3.0]
    # The replacement of a bad sample is a kept one, too.
    assert list(samples.candidates(0, 0, 1)) == [(0, 1), (0, 2), (0, 0), (2, 0)]


def test_mistakes_in_a_recipe_are_sentences(manifest, tmp_path):
    with pytest.raises(ValueError, match="neither a view before it nor an entry of a sidecar"):
        loader(manifest, FULL, views={"image.a": View(FULL, 8, same_as="image.b")})
    with pytest.raises(ValueError, match="different kinds"):
        loader(manifest, FULL, views={"image.a": View(EvalTransform(), 8, same_as="image")})
    other = View(FULL, 8, same_as="image", member="negative")
    with pytest.raises(ValueError, match="which is of another image"):
        loader(manifest, FULL, views={"image.a": other})
    with pytest.raises(ValueError, match="needs another name"):
        loader(manifest, FULL, sidecars={"text": Sidecar("x", {"a": "b"})})
    write_sidecar(tmp_path, "default", "00000", {"key": torch.tensor([1]), "p": torch.zeros(1, 3)})
    sidecars = {"t": Sidecar(str(tmp_path), {"p": "p"})}
    assert not sidecars["t"].row("default", "00000", 2)["present"]
    key = loader(manifest, FULL).decode(0, 0, 0).key
    write_sidecar(
        tmp_path, "default", "00000", {"key": torch.tensor([key]), "p": torch.zeros(1, 3)}
    )
    views = {"image.a": View(FULL, 8, same_as="t.p")}
    fresh = {"t": Sidecar(str(tmp_path), {"p": "p"})}
    with pytest.raises(ValueError, match="takes 18 parameters"):
        loader(manifest, FULL, views=views, sidecars=fresh).decode(0, 0, 0)
