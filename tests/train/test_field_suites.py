"""The packaged suites on small data sets in the field's layouts, against results known by hand.

The model is an oracle: an image's colour is a number, a text has a number, and equal numbers have
equal features. So it is known which answer it gives to each image and text.
"""

import csv
import io
import json
import tarfile

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from counterpoint.launch.config.suites import load_suite
from counterpoint.train.evaluation.choices.associations import jaccard
from counterpoint.train.evaluation.evaluate import evaluate, prepare
from counterpoint.train.evaluation.zero_shot.multi_label import average_precision

NUMBERS = 1100
WAYS = ("image_to_text", "text_to_image")
TABLE = torch.nn.functional.normalize(
    torch.randn(NUMBERS, 48, generator=torch.Generator().manual_seed(0)), dim=-1
)
SCORES = (TABLE.double() @ TABLE.double().T).numpy()


class Oracle(torch.nn.Module):
    image_size, context_length = 2, 1

    def encode_image(self, image):
        red, green = image[:, 0, 0, 0].long(), image[:, 1, 0, 0].long()
        return TABLE[red + 256 * green]

    def encode_text(self, ids, lengths):
        return TABLE[ids[:, 0]]


def encoded_image(number, form="PNG"):
    out = io.BytesIO()
    image = Image.new("RGB", (3, 3), (number % 256, number // 256, 0))
    image.save(out, form, **({"lossless": True} if form == "WEBP" else {}))
    return out.getvalue()


def run(suite, root, numbers):
    """`numbers`: of every text that is asked for; no others are, and none is left out."""
    asked = set()

    def tokenizer(texts, context_length):
        asked.update(texts)
        ids = torch.tensor([[numbers[text]] for text in texts])
        return ids, torch.ones(len(texts), dtype=torch.int64)

    def transform(image, size, rng):
        return image[:, :size, :size]

    found = evaluate(Oracle(), load_suite(suite, root), tokenizer, transform, batch_size=16)
    assert asked == numbers.keys()
    return found


def write_tar(path, samples):
    """Of (key, {extension: bytes})."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def recall(queries, candidates, right, k):
    """Share of queries with a right candidate among the k best; all numbers are distinct."""
    hits = []
    for query, answers in zip(queries, right, strict=True):
        best = np.argsort(-SCORES[query, candidates], kind="stable")[:k]
        hits.append(bool(set(best.tolist()) & set(answers)))
    return np.mean(hits)


def test_imagenet(tmp_path):
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    first, second = (i for i, name in enumerate(names) if name == "missile")
    # The colour of each image, by the number of its class.
    shown = {0: [0, 0, 3], 1: [1], 5: [7, 8, 9, 5], 998: [998, 2], first: [first], second: [first]}
    for i in range(1000):
        folder = tmp_path / "val" / f"n{i:08d}"
        folder.mkdir(parents=True)
        for j, number in enumerate(shown.get(i, ())):
            (folder / f"ILSVRC2012_val_{j:08d}.JPEG").write_bytes(encoded_image(number))
    numbers = {}
    for i, name in enumerate(names):
        for template in templates:
            numbers.setdefault(template(name), i)
    assert len(numbers) == (1000 - 2) * 80, "two names occur twice"
    found = run("imagenet", tmp_path, numbers)
    # Right are those whose colour is their class; of two classes of one name neither is.
    right = {0: 2 / 3, 1: 1, 5: 1 / 4, 998: 1 / 2, first: 0, second: 0}
    assert found["imagenet/zeroshot/top1"] == pytest.approx(5 / 12)
    assert found["imagenet/zeroshot/mean_per_class_recall"] == pytest.approx(
        sum(right.values()) / 6
    )
    # A class of one of the two names lies where the first of them lies.
    where = [first if i == second else i for i in range(1000)]
    ranks = [
        sum(SCORES[number, where[j]] >= SCORES[number, where[i]] for j in range(1000) if j != i)
        for i, group in shown.items()
        for number in group
    ]
    assert found["imagenet/zeroshot/top5"] == pytest.approx(np.mean(np.array(ranks) < 5))


def test_imagenet_without_its_folders(tmp_path):
    with pytest.raises(ValueError, match=r"imagenet/val does not exist .* data_root"):
        run("imagenet", tmp_path / "imagenet", {})
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "val" / "n01440764" / "a.JPEG").write_bytes(encoded_image(0))
    with pytest.raises(ValueError, match=r"val has 1 class folders \(n01440764\), and 1000 are"):
        run("imagenet", tmp_path, {})


def test_clip_benchmark_classification(tmp_path):
    root = tmp_path / "wds_beasts"
    classes = ["grey wolf", "cat", "ox"]
    samples = [
        (f"s{i:07d}", {"webp": encoded_image(number, "WEBP"), "cls": str(label).encode()})
        for i, (number, label) in enumerate([(0, 0), (1, 1), (2, 1), (2, 2), (1, 0), (0, 0)])
    ]
    write_tar(root / "test" / "0.tar", samples[:4])
    write_tar(root / "test" / "1.tar", samples[4:])
    (root / "test" / "nshards.txt").write_text("2")
    (root / "classnames.txt").write_text("\n".join(classes) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}\n")
    numbers = {text.format(c): i for i, c in enumerate(classes) for text in ("a {}.", "the {}")}
    found = run("clip_benchmark", root, numbers)
    assert found == {
        "wds_beasts/test/top1": pytest.approx(4 / 6),
        "wds_beasts/test/mean_per_class_recall": pytest.approx((2 / 3 + 1 / 2 + 1) / 3),
    }


def captioned(root):
    """Five images with two or three captions each; the numbers of images and of captions."""
    images = [10, 11, 12, 13, 14]
    texts = {f"caption {i} of {n}": 100 + 10 * n + i for n in range(5) for i in range(2 + n % 2)}
    samples = [
        (
            f"s{n:07d}",
            {
                "jpg": encoded_image(number),
                "txt": "\n".join(t for t in texts if t.endswith(f"of {n}")).encode(),
            },
        )
        for n, number in enumerate(images)
    ]
    write_tar(root / "test" / "0.tar", samples[:3])
    write_tar(root / "test" / "1.tar", samples[3:])
    owner = [int(text[-1]) for text in texts]
    captions = list(texts.values())
    expected = {}
    for k in (1, 5, 10):
        of_image = [[j for j, n in enumerate(owner) if n == i] for i in range(5)]
        expected[f"image_to_text_recall@{k}"] = recall(images, captions, of_image, k)
        expected[f"text_to_image_recall@{k}"] = recall(captions, images, [[n] for n in owner], k)
    return texts, expected


@pytest.mark.parametrize("suite", ["coco_retrieval", "clip_benchmark"])
def test_retrieval_of_several_captions_an_image(tmp_path, suite):
    root = tmp_path / "wds_pairs"
    texts, expected = captioned(root)
    (root / "dataset_type.txt").write_text("retrieval\n")
    found = run(suite, root, texts)
    first = "coco_retrieval/retrieval" if suite == "coco_retrieval" else "wds_pairs/test"
    assert found == {f"{first}/{name}": pytest.approx(value) for name, value in expected.items()}
    assert 0 < found[f"{first}/text_to_image_recall@1"] < 1


def datacomp_set(root, name, images, labels, classes, npy=None):
    """One folder of DataComp's evaluation: an image a number, prompts of classes numbered 0 on."""
    folder = root / f"wds_{name}_test"
    samples = []
    for i, (number, label) in enumerate(zip(images, labels, strict=True)):
        members = {"jpg": encoded_image(number), "cls": str(label).encode()}
        if npy is not None:
            array = io.BytesIO()
            np.save(array, np.array(npy[i]))
            members["npy"] = array.getvalue()
        samples.append((f"s{i:07d}", members))
    write_tar(folder / "test" / "0.tar", samples[:3])
    write_tar(folder / "test" / "1.tar", samples[3:])
    write_tar(folder / "test" / "2.tar", [("of an older version", {"jpg": encoded_image(0)})])
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "classnames.txt").write_text("\n".join(classes))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}")
    return {f"a {name}": i for i, name in enumerate(classes)}


def test_datacomp(tmp_path):
    rng = np.random.default_rng(0)
    eight = [f"class {i}" for i in range(8)]
    # Seven images, of which some look like other classes than their own.
    labels, images = [0, 0, 1, 1, 2, 7, 7], [0, 3, 1, 1, 4, 7, 0]
    right = np.array(labels) == np.array(images)
    numbers = datacomp_set(tmp_path, "cars", images, labels, eight)
    # Names that are digits, in another order than that of the labels.
    digits = ["3", "2", "1", "0", "4", "5", "6", "7"]
    numbers |= datacomp_set(tmp_path, "vtab-caltech101", images, labels, digits)
    numbers |= datacomp_set(tmp_path, "wilds-iwildcam", images, labels, eight)
    region = [[g, year] for g, year in zip([0, 0, 1, 1, 5, 5, 5], rng.permutation(7), strict=True)]
    numbers |= datacomp_set(tmp_path, "wilds-fmow", images, labels, eight, region)
    numbers |= datacomp_set(tmp_path, "dollar_street", images, labels, eight, region)
    captions, recalls = captioned(tmp_path / "wds_flickr30k_test")
    (tmp_path / "wds_flickr30k_test/dataset_type.txt").write_text("retrieval")
    found = run("datacomp", tmp_path, numbers | captions)
    groups = np.array(region)[:, 0]
    top5 = np.array(
        [
            sum(SCORES[n, j] >= SCORES[n, t] for j in range(8) if j != t) < 5
            for n, t in zip(images, labels, strict=True)
        ]
    )
    main = {
        "cars": right.mean(),
        "caltech101": np.mean([1 / 2, 1, 0, 1 / 2]),
        "iwildcam": f1_score(labels, images, labels=np.unique(labels), average="macro"),
        "fmow": min(right[groups == g].mean() for g in (0, 1, 5)),
        "dollar_street": min(top5[groups == g].mean() for g in (0, 1, 5)),
        "flickr30k": np.mean([recalls[f"{way}_recall@1"] for way in WAYS]),
    }
    measured = {n.split("/")[1]: v for n, v in found.items() if n.endswith("/main")}
    assert measured == pytest.approx(main | {"average_of_6": np.mean(list(main.values()))})
    assert found["datacomp/fmow/top1"] == pytest.approx(right.mean()) != main["fmow"]
    assert 0 < main["dollar_street"] < 1 and main["fmow"] > 0


def test_datacomp_in_parts(tmp_path):
    with pytest.raises(ValueError, match=r"no task of suite 'datacomp' are there, .*data_root"):
        run("datacomp", tmp_path, {})
    names = ["a", "b"]
    numbers = datacomp_set(tmp_path, "wilds-fmow", [0, 1], [0, 1], names, [[0], [1]])
    suite = load_suite("datacomp", tmp_path)
    assert suite.note == ""
    run("datacomp", tmp_path, numbers)
    prepare(suite)
    assert suite.note.startswith(
        "37 of 38 tasks are left out, whose data are not there: caltech101,"
    )
    datacomp_set(tmp_path, "geode", [0, 1], [0, 1], names)
    with pytest.raises(
        ValueError, match=r"'geode' .* has no number 0 in its \.npy \(it has None\)"
    ):
        run("datacomp", tmp_path, numbers)
    (tmp_path / "wds_geode_test/test/1.tar").unlink()
    with pytest.raises(ValueError, match=r"says 2 shards, and 1 are missing, such as 1\.tar"):
        run("datacomp", tmp_path, numbers)


def test_folders_that_hold_no_such_data(tmp_path):
    with pytest.raises(ValueError, match=r"data_root has to be the folder of one data set"):
        run("clip_benchmark", tmp_path, {})
    (tmp_path / "dataset_type.txt").write_text("captioning")
    with pytest.raises(ValueError, match=r"dataset_type\.txt says 'captioning'"):
        run("clip_benchmark", tmp_path, {})
    with pytest.raises(ValueError, match=r"test/\*\.tar does not exist .* data_root"):
        run("coco_retrieval", tmp_path, {})


def test_what_a_suite_imports_has_to_exist(tmp_path):
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "tasks:\n  t:\n    class_path: "
        "counterpoint.train.evaluation.zero_shot.classification.ZeroShot\n"
        "    init_args: {data: {class_path: counterpoint.data.image_sets.FolderSet, init_args: "
        "{path: x}}, classes: {import: open_clip.IMAGENET_CLASSES}}\n"
    )
    with pytest.raises(ValueError, match=r"classes.import: open_clip\.IMAGENET_CLASSES cannot be"):
        load_suite(suite)


def test_clip_benchmark_with_several_labels(tmp_path):
    root = tmp_path / "wds_beasts"
    classes, shown = ["wolf", "cat", "ox", "elk"], [0, 1, 2, 7, 8, 9, 1, 0]
    # The last class has no image, and counts as zero.
    has = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]] + [[0] * 3] * 2
    )
    has = np.pad(has, ((0, 0), (0, 1)))
    samples = []
    for i, (number, row) in enumerate(zip(shown, has, strict=True)):
        array = io.BytesIO()
        np.save(array, row.astype(np.float32))
        samples.append((f"s{i:07d}", {"png": encoded_image(number), "npy": array.getvalue()}))
    write_tar(root / "test" / "0.tar", samples)
    (root / "dataset_type.txt").write_text("multilabel\n")
    (root / "classnames.txt").write_text("\n".join(classes) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}.\n")
    found = run("clip_benchmark", root, {f"a {name}.": i for i, name in enumerate(classes)})
    scores = SCORES[np.ix_(shown, range(3))]
    wanted = [average_precision_score(has[:, k], scores[:, k]) for k in range(3)]
    assert len(set(wanted)) == 3
    assert found == {"wds_beasts/test/mean_average_precision": pytest.approx(sum(wanted) / 4)}


def test_a_class_without_a_name_has_its_number(tmp_path):
    """As that of CLEVR's distances, whose fourth line is empty."""
    root = tmp_path / "wds_vtab-clevr_closest_object_distance"
    samples = [
        (f"s{i:07d}", {"png": encoded_image(number), "cls": str(label).encode()})
        for i, (number, label) in enumerate([(0, 0), (2, 2), (2, 1)])
    ]
    write_tar(root / "test" / "0.tar", samples)
    (root / "classnames.txt").write_text("near\n\nfar\n")
    numbers = {"near shapes.": 0, " shapes.": 1, "far shapes.": 2}
    found = run("mteb_zero_shot", tmp_path, numbers)
    assert found["mteb_zero_shot/CLEVRZeroShot/top1"] == pytest.approx(2 / 3)
    assert found["mteb_zero_shot/average_of_1/top1"] == pytest.approx(2 / 3)


def test_winogavil(tmp_path):
    folder = tmp_path / "winogavil"
    names = [f"thing {i}" for i in range(12)]
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(names):
        (folder / "images" / f"{name}.png").write_bytes(encoded_image(i))
    rows = [("Eagle", 5, [0, 2]), ("bald", 6, [1, 2, 5]), ("ape", 12, [3, 4])]
    numbers = {"An eagle": 700, "A bald": 800, "An ape": 900}
    with (folder / "winogavil_dataset.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", "candidates", "cue", "associations", "num_candidates", "ID"])
        for i, (cue, size, right) in enumerate(rows):
            shown = [json.dumps([names[k] for k in each]) for each in (range(size), right)]
            table.writerow([i, shown[0], cue, shown[1], size, i])
    found = run("winogavil", folder, numbers)
    values = []
    for number, (_, size, right) in zip(numbers.values(), rows, strict=True):
        chosen = np.argsort(-SCORES[number, :size])[: len(right)]
        is_chosen, is_right = (np.isin(range(size), each) for each in (chosen, right))
        values.append(jaccard_score(is_right, is_chosen))
    assert 0 < np.mean(values) < 1
    assert found == {
        "winogavil/winogavil/jaccard": pytest.approx(np.mean(values)),
        "winogavil/winogavil/jaccard_5_6": pytest.approx(np.mean(values[:2])),
        "winogavil/winogavil/jaccard_10_12": pytest.approx(values[2]),
        "winogavil/winogavil/main": pytest.approx(values[2]),
    }
    (folder / "images" / "thing 0.png").unlink()
    with pytest.raises(ValueError, match=r"row 0 of .* names the image 'thing 0', which is not"):
        run("winogavil", folder, numbers)


def test_equal_and_missing_scores_are_no_hits():
    """Of equal candidates the wrong ones are chosen; a diverged model ranks nothing."""
    right = torch.tensor([True, True, False, False])
    assert jaccard(torch.tensor([1.0, 0.5, 0.5, 0.0]), right) == pytest.approx(1 / 3)
    assert jaccard(torch.full((4,), torch.nan), right) == 0
    assert average_precision(torch.full((4,), torch.nan), right) == 0
    assert average_precision(torch.zeros(4), right) == 0.5
