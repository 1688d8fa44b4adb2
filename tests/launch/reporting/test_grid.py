"""Retrieved images: ranks, which captions are shown, and the material from a run and its suite."""

import base64

import numpy as np
import pytest

from counterpoint.launch.reporting.grid import Pairs, build_grid, pairs_of_run, png
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective


def test_retrieval_against_a_slow_count():
    rng = np.random.default_rng(3)
    images, captions = rng.normal(size=(30, 6)), rng.normal(size=(17, 6))
    correct = [sorted(rng.choice(30, size=2, replace=False).tolist()) for _ in range(17)]
    blank = np.zeros((3, 2, 2), dtype=np.uint8)
    names = [str(i) for i in range(17)]
    grid = build_grid(Pairs(names, lambda i: blank, captions, images, correct), num_rows=17)
    for index, row in enumerate(grid.rows):
        scores = [float(np.dot(captions[index], image)) for image in images]
        best = max(scores[i] for i in correct[index])
        assert row.rank == 1 + sum(score > best for score in scores)
        np.testing.assert_allclose(
            [hit.similarity for hit in row.hits], sorted(scores, reverse=True)[:5]
        )
    assert grid.num_first == sum(row.rank == 1 for row in grid.rows)
    assert grid.num_best == sum(row.rank <= 5 for row in grid.rows)


def test_a_collapsed_model_finds_nothing():
    blank = np.zeros((3, 2, 2), dtype=np.uint8)
    for value in (1.0, np.nan):
        flat = np.full((6, 8), value)
        grid = build_grid(
            Pairs(list("abcd"), lambda i: blank, flat[:4], flat, [[0], [1], [2], [3]])
        )
        assert (grid.num_first, grid.num_best) == (0, 0)


def test_captions_are_taken_at_even_distances():
    blank = np.zeros((3, 2, 2), dtype=np.uint8)
    names = [str(i) for i in range(100)]
    many = Pairs(names, lambda i: blank, np.ones((100, 8)), np.eye(6, 8), [[0]] * 100)
    rows = build_grid(many, num_rows=4).rows
    assert [row.caption for row in rows] == ["0", "33", "66", "99"]


def test_an_image_survives_the_page():
    from io import BytesIO

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    text = png(pixels).removeprefix("data:image/png;base64,")
    back = np.asarray(Image.open(BytesIO(base64.b64decode(text))))
    assert (back == pixels.transpose(1, 2, 0)).all()


def colour_model():
    """Two towers that see only colours: features are red, green and blue."""
    import torch

    class ColourModel(torch.nn.Module):
        image_size, context_length = 4, 3

        def encode_image(self, images):
            return images.float().mean((2, 3))

        def encode_text(self, ids, lengths):
            return torch.eye(3)[ids[:, 0]]

    return ColourModel()


def test_the_captions_and_images_of_a_suite(tmp_path, monkeypatch):
    import torch
    from PIL import Image

    from counterpoint.launch.run import load

    colours = {"a red": (255, 0, 0), "b green": (0, 255, 0), "c blue": (0, 0, 255)}
    for folder in ("one", "two"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name, colour in colours.items():
            Image.new("RGB", (200, 100), colour).save(tmp_path / "data" / folder / f"{name}.png")
            (tmp_path / "data" / folder / f"{name}.txt").write_text(name)
    (tmp_path / "suite.yaml").write_text(
        "tasks: {find: {class_path: counterpoint.train.evaluation.retrieval.Retrieval, init_args: "
        "{data: {class_path: counterpoint.data.image_sets.FolderSet, init_args: {path: data}}}}}"
    )

    class Data:
        def tokenizer(self, texts, length):
            first = torch.tensor([list(colours).index(text) for text in texts])
            return first[:, None].expand(-1, length), torch.ones(len(texts), dtype=torch.int64)

        def eval_transform(self, image, size, rng):
            return image[:, :size, :size]

    objective = Objective({"clip": InfoNCE()})
    config = {"evaluation": {"suite": str(tmp_path / "suite.yaml"), "data_root": str(tmp_path)}}
    data = Data()
    run = load.LoadedRun(colour_model(), objective, data.tokenizer, data.eval_transform, config)
    monkeypatch.setattr(load, "load_run", lambda folder: run)
    pairs = pairs_of_run(tmp_path, None)
    assert list(pairs.captions) == list(colours)
    assert [sorted(right) for right in pairs.correct] == [[0, 3], [1, 4], [2, 5]]
    assert pairs.image(4).shape == (3, 48, 96)
    assert pairs.image(4)[:, 0, 0].tolist() == [0, 255, 0]
    assert build_grid(pairs).num_first == 3
    # Another suite's data is not looked for where the run's own suite has its.
    config["evaluation"] = {"suite": "emoji", "data_root": str(tmp_path / "elsewhere")}
    other = pairs_of_run(tmp_path, str(tmp_path / "suite.yaml"))
    assert list(other.captions) == list(colours)
    config["evaluation"]["suite"] = None
    with pytest.raises(ValueError, match="no evaluation data"):
        pairs_of_run(tmp_path, None)
