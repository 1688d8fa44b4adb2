"""Suite files: mistakes, paths, the packaged suites, and the emoji suite on known answers."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import counterpoint.configs
from counterpoint.launch.config.suites import load_suite
from counterpoint.train.evaluation.evaluate import evaluate, prepare

SUITES = sorted((Path(counterpoint.configs.__path__[0]) / "suite").glob("*.yaml"))
SETS = "counterpoint.data.image_sets"
TASKS = "counterpoint.train.evaluation"
DATA = {"class_path": f"{SETS}.FolderSet", "init_args": {"path": "d"}}
ZERO = f"{TASKS}.zero_shot.classification.ZeroShot"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"task": {}}, "mine.yaml: task: there is no such key; there are name, root, tasks, avera"),
        (
            {
                "tasks": {"t": {"class_path": ZERO, "init_args": {"data": DATA}}},
                "absent": "ignore",
            },
            "absent is 'ignore'; it takes skip",
        ),
        ({"tasks": {}}, r"tasks is \{\}; it takes names, each with a class_path"),
        ([1], "mine.yaml holds no keys"),
        ({"tasks": {"t": {"init_args": {}}}}, "tasks.t: names no class: .*, such as Associations"),
        ({"tasks": {"t": {"class_path": "no.Such"}}}, "t.class_path: there is no module 'no'"),
        ({"tasks": {"t": {"class_path": "ZeroShut"}}}, f"there is no class .* did you mean {ZERO}"),
        ({"tasks": {"t": DATA}}, "tasks.t.class_path: .*FolderSet is not derived from .*Task,"),
        ({"tasks": {"t": {"class_path": ZERO}}}, "data: is missing: ZeroShot needs it .*ImageSet"),
        (
            {"tasks": {"t": {"class_path": ZERO, "init_args": {"data": DATA, "lable": "x"}}}},
            "lable: there is no such key; did you mean tasks.t.init_args.label",
        ),
        (
            {"tasks": {"t": {"class_path": ZERO, "init_args": {"data": "photos"}}}},
            "data: there is no class 'photos'; there are .*FolderSet, .*ShardSet",
        ),
        (
            {"tasks": {"t": {"class_path": ZERO, "init_args": {"data": DATA | {"args": 1}}}}},
            "t.init_args.data.args: there is no such key; there are class_path, .*init_args",
        ),
        (
            {"tasks": {"t": {"class_path": f"{TASKS}.retrieval.Retrieval",
                             "init_args": {"data": DATA, "k": [0]}}}},
            r"mine.yaml: tasks.t: k: \[0\] is not a list",
        ),
        (
            {"tasks": {"t": {"class_path": f"{TASKS}.retrieval.Retrieval",
                             "init_args": {"data": DATA, "k": "x"}}}},
            "tasks.t.init_args.k: is 'x'; it takes a list of whole numbers",
        ),
        (
            {"tasks": {"t": {"class_path": ZERO,
                             "init_args": {"data": DATA, "classes": {"import": "open_clip.X"}}}}},
            "tasks.t.init_args.classes.import: open_clip.X cannot be imported",
        ),
        (
            {"tasks": {"t": {"class_path": ZERO,
                             "init_args": {"data": DATA, "templates": {"import": "os"}}}}},
            "tasks.t.init_args.templates.import: os is a module; name a value in it",
        ),
        ({"tasks": {"t": None}}, "tasks.t: is empty; write class_path"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_suite_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message) as caught:
        load_suite(path)
    assert "\n" not in str(caught.value)


def test_a_root_of_digits_is_a_folder(tmp_path):
    path = tmp_path / "mine.yaml"
    task = {"class_path": ZERO, "init_args": {"data": DATA, "templates": "{c}"}}
    path.write_text(yaml.safe_dump({"root": 2024, "tasks": {"t": task}}))
    assert load_suite(path).tasks["t"].data.root == tmp_path / "2024"


def test_an_unknown_name_tells_the_packaged_suites():
    with pytest.raises(ValueError, match=r"'none' is .* packaged suite: there are .*emoji.*"):
        load_suite("none")
    with pytest.raises(ValueError, match="did you mean emoji"):
        load_suite("emojis")


def test_equal_image_sets_are_one_and_others_are_not(tmp_path):
    names = {"a": "d", "b": "d", "c": "e"}
    tasks = {
        name: {"class_path": ZERO, "init_args": {"data": DATA | {"init_args": {"path": path}}}}
        for name, path in names.items()
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    first, second, other = load_suite(tmp_path / "mine.yaml").tasks.values()
    assert first.data is second.data is not other.data


def crop(image, size, rng):
    return image[:, :size, :size]


def test_paths_start_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sub" / "mine.yaml"
    path.parent.mkdir()
    task = {"class_path": ZERO, "init_args": {"data": DATA}}
    for root, data_root, expected in [
        (None, None, "sub"),
        ("r", None, "sub/r"),
        ("r", "elsewhere", "elsewhere"),
        (None, "elsewhere", "elsewhere"),
    ]:
        path.write_text(yaml.safe_dump({"tasks": {"t": task}} | ({"root": root} if root else {})))
        loaded = load_suite("sub/mine.yaml", data_root)
        assert loaded.name == "mine"
        assert loaded.tasks["t"].data.root.resolve() == tmp_path / expected
    assert load_suite("emoji").tasks["heldout"].data.root.resolve() == tmp_path / "emoji"


@pytest.mark.parametrize(
    "path",
    [
        # Class names by the thousand.
        pytest.param(path, marks=pytest.mark.soak if path.stem.startswith("imagenet_") else ())
        for path in SUITES
    ],
    ids=lambda path: path.stem,
)
def test_every_packaged_suite_loads(path):
    loaded = load_suite(path.stem)
    # This one is called as the folder of its data.
    name = Path.cwd().name if path.stem == "clip_benchmark" else path.stem
    assert loaded.tasks and loaded.name == name
    assert load_suite(path).tasks.keys() == loaded.tasks.keys()


class Oracle(nn.Module):
    """Knows the pixel value of every caption; sees every image drawn by `blind` as black."""

    image_size, context_length = 4, 77

    def __init__(self, values):
        super().__init__()
        self.values = values
        angles = torch.arange(len(values)) * (torch.pi / len(values))
        self.table = torch.stack([angles.cos(), angles.sin()], 1)

    def encode_image(self, image):
        return self.table[image[:, 0, 0, 0].long()]

    def encode_text(self, ids, lengths):
        texts = ["".join(chr(i) for i in row[:n]) for row, n in zip(ids, lengths, strict=True)]
        return torch.stack([self.table[self.values.get(text, 0)] for text in texts])


def test_the_emoji_suite_on_a_small_copy_of_its_layout(tmp_path):
    tones = ("light", "dark")
    names = [f"{who} {tone} skin tone" for who in ("woman", "man") for tone in tones]
    folder = tmp_path / "heldout"
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for style in ("openmoji", "twemoji"):
            for i, name in enumerate(names):
                who, tone = name.split()[:2]
                fields = {"style": style, "skin_tone": tone, "gender": who, "key": f"{style}{i}"}
                image = io.BytesIO()
                seen = i if style == "twemoji" else 0
                Image.new("RGB", (4, 4), (seen, 0, 0)).save(image, "PNG")
                members = {
                    "png": image.getvalue(),
                    "txt": name.encode(),
                    "json": json.dumps(fields).encode(),
                }
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{style}{i}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    def characters(texts, length):
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.tensor([ord(c) for c in text])
        return ids, torch.tensor([len(text) for text in texts])

    suite = load_suite("emoji", tmp_path)
    model = Oracle({name: i for i, name in enumerate(names)})
    results = evaluate(model, suite, characters, crop)
    assert results["emoji/heldout_twemoji/top1"] == 1
    assert results["emoji/heldout_openmoji/top1"] == 1 / 4
    assert results["emoji/heldout/top1"] == (1 + 1 / 4) / 2
    # Of a caption's two images one is found at once; black images find the first caption only.
    assert results["emoji/retrieval/image_to_text_recall@1"] == 5 / 8
    assert results["emoji/retrieval/text_to_image_recall@5"] == 1
    assert {"emoji/skin_tone/top1", "emoji/gender/top1"} < results.keys()


def test_preparing_alone_finds_mistakes_in_the_data(tmp_path):
    with pytest.raises(ValueError, match=r"task 'heldout' of suite 'emoji': .* give the folder"):
        prepare(load_suite("emoji", tmp_path))
