"""The icon corpus on made-up sets: layout, captions, colours, splits, the same bytes every time."""

import hashlib
import io
import json
import re
import tarfile
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from counterpoint.data.corpora.icons import corpus
from counterpoint.data.corpora.icons.corpus import Settings, build_icons
from counterpoint.data.corpora.icons.sets import SETS
from counterpoint.data.image_sets import ShardSet
from counterpoint.data.shards.manifest import Manifest
from counterpoint.launch import cli

TRAINING = tuple(f"plain-{letter}" for letter in "abcdef")
HELD_OUT = ("shift-x", "shift-y")
SMALL = Settings(TRAINING + HELD_OUT, HELD_OUT, min_sets=5, num_held_out=4)
SPLITS = ("train", "val", "indist", "shift", "unseen")
# Web colours of the names, written down apart from the corpus.
RGB = {"black": (0, 0, 0), "gray": (95, 99, 104), "brown": (121, 80, 34), "red": (208, 23, 22)}
RGB |= {"orange": (239, 108, 0), "olive": (122, 122, 0), "green": (10, 126, 7)}
RGB |= {"teal": (0, 121, 107), "blue": (26, 95, 208), "navy": (16, 32, 111)}
RGB |= {"purple": (123, 31, 162), "pink": (216, 27, 120)}


def read_split(folder):
    """key -> {"json": ..., "png": ..., "txt": ...} of all sets of a split, read plainly."""
    samples = defaultdict(dict)
    for path in sorted(folder.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples[key][extension] = tar.extractfile(member).read()
    for sample in samples.values():
        sample["json"] = json.loads(sample["json"])
        sample["txt"] = sample["txt"].decode()
        sample["pixels"] = np.asarray(Image.open(io.BytesIO(sample["png"])))
    return dict(samples)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(registry, tmp_path_factory):
    """The corpus of the made-up sets; returns (folder, summary)."""
    folder = tmp_path_factory.mktemp("corpus") / "icons"
    return folder, build_icons(folder, SMALL, cache=registry)


@pytest.fixture(scope="module")
def splits(small):
    return {split: read_split(small[0] / split) for split in SPLITS}


def concept_of(name):
    """A made-up name's concept, by its words."""
    return name.removesuffix("-bold").replace("-", " ")


def test_same_bytes_every_time_from_any_number_of_processes(small, registry, tmp_path):
    again = tmp_path / "elsewhere"
    build_icons(again, SMALL, num_workers=2, cache=registry)
    assert digests(again) == digests(small[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_another_seed_gives_other_splits(small, splits, registry, tmp_path):
    other = tmp_path / "other"
    build_icons(other, Settings(**{**vars(SMALL), "seed": 1}), cache=registry)
    assert read_split(other / "unseen").keys() != splits["unseen"].keys()


def test_every_name_is_in_one_split_but_the_withdrawn_and_the_mirrored(small, splits):
    names = defaultdict(set)
    for samples in splits.values():
        for key in samples:
            name, _, icon = key.partition(":")
            assert icon not in names[name]
            names[name].add(icon)
    for group, name in enumerate(TRAINING + HELD_OUT):
        last = 40 if group >= 6 else min(40, 8 * (6 - group))
        expected = {f"thing-{i}{bold}" for i in range(last) for bold in ("", "-bold")}
        expected |= {"traffic-light", "item-5"} | ({"other-word"} if group < 3 else set())
        assert names[name] == expected
    assert small[1]["left_out"]["plain-a"] == {"withdrawn": 1, "aliases": 2, "undrawable": 0}


def test_layout_is_that_of_img2dataset_with_a_source_for_each_set(small, splits):
    folder, summary = small
    for split, samples in splits.items():
        manifest = Manifest.load(folder / f"{split}.parquet")
        assert manifest.counts.sum() == len(samples) == summary["pairs"][split]
        sources = [manifest.sources[i] for i in manifest.source_ids]
        for source, url, count in zip(sources, manifest.urls, manifest.counts, strict=True):
            with tarfile.open(url) as tar:
                names = tar.getnames()
                assert {member.mtime for member in tar} == {0}
            stats = json.loads((folder / split / source / "00000_stats.json").read_text())
            assert stats["successes"] == count == len(names) / 3
            assert all(name.startswith(f"{source}:") for name in names)
            for first in range(0, len(names), 3):
                key = names[first].partition(".")[0]
                assert names[first : first + 3] == [f"{key}.{e}" for e in ("json", "png", "txt")]
    assert Manifest.load(folder / "train.parquet").sources == sorted(TRAINING)


def test_samples_say_what_they_are(splits):
    for split, samples in splits.items():
        for key, sample in samples.items():
            facts = sample["json"]
            assert facts["key"] == key == f"{facts['set']}:{facts['name']}"
            assert facts["split"] == split
            assert facts["caption"] == sample["txt"] == facts["name"].replace("-", " ")
            assert facts["concept"] == facts["base"] == concept_of(facts["name"])
            assert facts["style"] == ("bold" if key.endswith("-bold") else "regular")
            word = re.escape(facts["color"])
            template = rf"an? {word} {facts['style']} icon of {facts['base']}"
            assert re.fullmatch(template, facts["template"])
            assert facts["template"].startswith("an ") == (facts["color"][0] in "aeiou")
            assert sample["pixels"].shape == (64, 64, 3)
            alias = {"item-5": "thing-5", "other-word": "thing-3"}.get(facts["name"], "")
            assert facts["alias_of"] == alias
    facts = splits["train"] | splits["indist"]
    assert facts["plain-a:thing-1"]["json"]["categories"] == ["Also", "Things"]
    assert facts["plain-a:thing-1"]["json"]["category"] == "Also"


def test_a_picture_has_the_colour_that_is_recorded(splits):
    colors = set()
    for samples in splits.values():
        for sample in samples.values():
            color = sample["json"]["color"]
            image = Image.fromarray(sample["pixels"])
            drawn = {pixel for _, pixel in image.getcolors(64 * 64)}
            assert (255, 255, 255) in drawn
            if sample["json"]["set"] in HELD_OUT:
                assert color == "multicolor" and (0, 0, 255) in drawn
            else:
                assert RGB[color] in drawn
                colors.add(color)
    assert len(colors) > 8


def test_an_alias_is_the_same_picture_with_another_caption(splits):
    everything = {key: sample for samples in splits.values() for key, sample in samples.items()}
    pairs = [(f"{name}:item-5", f"{name}:thing-5") for name in TRAINING + HELD_OUT]
    pairs += [(f"{name}:other-word", f"{name}:thing-3") for name in TRAINING[:3]]
    for alias, name in pairs:
        assert everything[alias]["png"] == everything[name]["png"]
        assert everything[alias]["txt"] != everything[name]["txt"]


def test_splits_are_apart_by_concept_by_set_and_by_picture(small, splits):
    summary = small[1]
    concepts = {s: {x["json"]["concept"] for x in splits[s].values()} for s in SPLITS}
    families = {
        s: {(x["json"]["set"], x["json"]["concept"]) for x in splits[s].values()} for s in SPLITS
    }
    for split in ("unseen", "val"):
        assert len(concepts[split]) == 4
        for other in set(SPLITS) - {split, "shift"}:
            assert not concepts[split] & concepts[other]
        for concept in concepts[split]:
            assert len({name for name, c in families[split] if c == concept}) >= 2
    assert not families["indist"] & families["train"]
    assert concepts["indist"] <= concepts["train"]
    for split in SPLITS:
        assert {name for name, _ in families[split]} <= set(
            HELD_OUT if split == "shift" else TRAINING
        )
    # A drawing is the same picture in any colour.
    shapes = {s: {(x["pixels"] < 255).any(2).tobytes() for x in splits[s].values()} for s in SPLITS}
    for split in ("unseen", "val", "indist"):
        for other in set(SPLITS) - {split}:
            assert not shapes[split] & shapes[other], (split, other)
    assert summary["concepts"] == len(set().union(*concepts.values()))


def test_classes_are_in_training_in_distribution_and_under_the_shift(small, splits):
    classes = (small[0] / "classes.txt").read_text().splitlines()
    assert classes == sorted(set(classes)) and len(classes) == small[1]["classes"]
    by_split = {
        s: {x["json"]["concept"] for x in splits[s].values() if x["json"]["in_classes"]}
        for s in SPLITS
    }
    assert by_split["indist"] == by_split["shift"] == set(classes)
    assert {x["json"]["concept"] for x in splits["indist"].values()} == set(classes)
    assert not by_split["unseen"] | by_split["val"]
    sets = defaultdict(set)
    for split in ("train", "indist"):
        for sample in splits[split].values():
            sets[sample["json"]["concept"]].add(sample["json"]["set"])
    shifted = {x["json"]["concept"] for x in splits["shift"].values()}
    shared = {"thing 5", "item 5", "thing 3", "other word"}
    frequent = {c for c, names in sets.items() if len(names) >= 5} & shifted
    # All pictures of concept 5 have two names: none of them can be held out.
    assert frequent - {"thing 5", "item 5"} == set(classes)
    assert "thing 3" in classes and "other word" not in classes
    for concept in set(classes) - shared:
        held = {x["json"]["set"] for x in splits["indist"].values()
                if x["json"]["concept"] == concept}  # fmt: skip
        assert len(held) == 2


def test_an_evaluation_finds_the_classes(small):
    shift = ShardSet("shift.parquet")
    shift.root = small[0]
    chosen = shift.select({"in_classes": True})
    classes = (small[0] / "classes.txt").read_text().splitlines()
    assert set(shift.values("concept", chosen)) == set(classes)
    assert set(shift.values("set", chosen)) == set(HELD_OUT)


def test_a_limit_keeps_whole_concepts(small, registry, tmp_path):
    settings = Settings(**{**vars(SMALL), "limit": 30, "num_held_out": 1})
    summary = build_icons(tmp_path / "few", settings, cache=registry)
    few, full = defaultdict(set), defaultdict(set)
    for folder, keys in ((tmp_path / "few", few), (small[0], full)):
        for split in SPLITS:
            for key, sample in read_split(folder / split).items():
                keys[sample["json"]["concept"]].add(key)
    assert len(few) == summary["concepts"] == 30
    assert all(keys == full[concept] for concept, keys in few.items())


def test_a_set_of_which_a_limit_leaves_nothing(registry, tmp_path, monkeypatch):
    without = lambda icons, *_: [icon for icon in icons if icon.set != "plain-f"]  # noqa: E731
    monkeypatch.setattr(corpus, "limited", without)
    summary = build_icons(tmp_path / "few", SMALL, cache=registry)
    assert summary["sets"]["plain-f"] == {}
    assert summary["left_out"]["plain-f"]["undrawable"] == 0


def test_attribution_names_author_and_licence_of_each_set(small):
    text = (small[0] / "ATTRIBUTION.md").read_text()
    for name in TRAINING + HELD_OUT:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"[Author of {name}](https://example.org/author)" in row
        assert "[MIT](https://example.org/licence)" in row
        assert f"@iconify-json/{name} 1.0.0" in row


def test_a_complete_corpus_stays_and_a_damaged_one_is_built_again(
    registry, tmp_path, capsys, monkeypatch
):
    sets = ",".join(TRAINING + HELD_OUT)
    command = ["data", "icons", str(tmp_path / "o"), "--sets", sets, "--held-out-sets"]
    command += [",".join(HELD_OUT), "--num-held-out", "4", "--workers", "1"]
    command += ["--cache", str(registry)]
    assert cli.main(command) == 0
    assert re.search(
        r"built; \d+ pairs of 8 sets, 43 concepts, 16 classes", capsys.readouterr().out
    )
    before = digests(tmp_path / "o")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")  # nothing is fetched
        assert cli.main(command) == 0
    assert "complete already" in capsys.readouterr().out
    (tmp_path / "o" / "val" / "plain-a" / "00000.tar").unlink()
    assert cli.main(command) == 0
    assert "complete already" not in capsys.readouterr().out
    assert digests(tmp_path / "o") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": ("plain-a", "plane")}, "sets: there is no set 'plane'; there are arcticons"),
        ({"held_out_sets": ("shifty",)}, "held-out sets: there is no set 'shifty'"),
        ({"sets": TRAINING}, "none of the sets is held out; add one of shift-x, shift-y"),
        ({"min_sets": 1}, "min_sets is 1.*give 2 or more"),
        ({"min_sets": 7}, r"no concept occurs in 7 of the 6 sets.*smaller --min-sets"),
        ({"num_held_out": 99}, r"num_held_out is 99.*only \d+ besides.*give \d+ or fewer"),
        ({"num_held_out": -1}, "num_held_out is -1; give 0 or more"),
        ({"limit": -1}, "limit is -1; give 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(registry, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_icons(tmp_path / "o", Settings(**{**vars(SMALL), **change}), cache=registry)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_left_alone(registry, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'thesis.tex', which is not of an icon corpus"):
        build_icons(tmp_path, SMALL, cache=registry)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.soak
def test_real_sets_are_fetched_and_drawn(tmp_path):
    sets = ("bi", "heroicons", "lucide", "ri", "icon-park")
    settings = Settings(sets, ("icon-park",), min_sets=3, num_held_out=20, limit=900)
    summary = build_icons(tmp_path / "o", settings, 2, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.tgz"))) == 5
    assert not sum(left["undrawable"] for left in summary["left_out"].values())
    assert summary["classes"] > 5 and summary["pairs"]["train"] > 500
    assert set(sets) < set(SETS)
