"""Text spotting: images against glyphs, figures of readers and non-readers against NumPy."""

import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import ImageFont
from torch import nn
from toy_evaluation import ToyImages

import counterpoint.train.evaluation.robustness.text_spotting as module
from counterpoint.data.word_images import WordImages
from counterpoint.launch.config.suites import load_suite
from counterpoint.losses.components.similarity import Metric, SquaredDistance
from counterpoint.train.evaluation.evaluate import evaluate, prepare
from counterpoint.train.evaluation.robustness.text_spotting import TextSpotting
from counterpoint.train.evaluation.suite import Suite

WORDS = ["fish", "Don't!", "new york", "sea", "wi"]
COLOURS = {"white": 255, "gray": 128, "black": 0}
STYLES = ["black_on_white", "white_on_black", "white_on_gray", "black_on_gray"]


def vector(name, size=1.0):
    """Some vector of three numbers, the same for the same name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    rows = rng.normal(size=3)
    return size * rows / np.linalg.norm(rows)


def words_of(ids):
    return ["".join(map(chr, row)).rstrip("\0") for row in ids.tolist()]


def tokenizer(texts, context_length):
    ids = torch.zeros(len(texts), 20, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor([ord(letter) for letter in text])
    return ids, torch.full((len(texts),), 20)


class Model(nn.Module):
    """Image features by what is drawn, text features by word; raw ones have their length."""

    image_size, context_length = 224, 20

    def __init__(self, image, text):
        super().__init__()
        self.rows = {"image": image, "text": text}

    def features(self, kind, names, form):
        rows = torch.tensor(np.array([self.rows[kind](name) for name in names]))
        return rows.float() if form else nn.functional.normalize(rows, dim=-1).float()

    def encode_image(self, images, form=""):
        return self.features("image", [each.numpy().tobytes() for each in images], form)

    def encode_text(self, ids, lengths, form=""):
        return self.features("text", words_of(ids), form)


def run(model, task, **kwargs):
    suite = Suite("s", {"t": task})
    values = evaluate(model, suite, tokenizer, lambda image, size, rng: image, **kwargs)
    return {name.removeprefix("s/t"): value for name, value in values.items()}


def reader(text, tilt):
    """A model that sees which word stands in which style: the word's vector, and a bit of noise."""
    data = WordImages(WORDS)
    noise = {style: vector(style, tilt) for style in STYLES}
    seen = {
        data.image(i).numpy().tobytes(): text(item.get("word")) + noise[item.get("style")]
        for i, item in enumerate(data.items)
    }
    return Model(seen.__getitem__, text), np.stack(list(seen.values()))


def figures(image, text):
    """The measures by their definition, float64, images style by style of each word."""
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    is_own = np.repeat(np.eye(len(text), dtype=bool), len(image) // len(text), axis=0)
    scores = image @ text.T
    return {
        "/cosine": scores[is_own].mean(),
        "/cosine_std": scores[is_own].std(),
        "/other_cosine": scores[~is_own].mean(),
        "/other_cosine_std": scores[~is_own].std(),
        "/top1": (scores.argmax(1) == is_own.argmax(1)).mean(),
    }


def box_of(ink):
    """The rows and columns from the first to the last with ink."""
    rows, columns = np.nonzero(ink)
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


@pytest.mark.parametrize("style", STYLES)
def test_a_word_is_drawn_in_the_middle_in_its_colours(style):
    data = WordImages(WORDS, image_size=150, font_size=24)
    letters, ground = (COLOURS[name] for name in style.split("_on_"))
    font = ImageFont.load_default(24)
    for i in data.select({"style": style}):
        word = data.items[i].get("word")
        mask = font.getmask(word, mode="L")
        mask = np.array(mask, dtype=float).reshape(mask.size[::-1])
        pixels = data.image(i)
        assert pixels.shape == (3, 150, 150) and pixels.dtype == torch.uint8
        assert (pixels == pixels[:1]).all()
        # How much of a letter covers each pixel, from 0 to 255.
        drawn = 255 * (pixels[0].double().numpy() - ground) / (letters - ground)
        rows, columns = np.nonzero(drawn)
        assert np.abs(drawn[box_of(drawn)] - mask[box_of(mask)]).max() <= 2  # of 128 greys
        assert abs(rows.min() + rows.max() - 149) <= 1  # as much ground on both sides
        assert (
            abs(columns.min() + columns.max() - 149) <= 3
        )  # but for what the last letter keeps free


def test_images_and_words_are_the_same_each_time(tmp_path):
    (tmp_path / "words.txt").write_text("fish\n\n Don't! \nnew york\nsea\nwi\n")
    listed, read = WordImages(WORDS), WordImages("words.txt")
    read.root = tmp_path
    assert [i.fields for i in read.items] == [i.fields for i in listed.items]
    assert Counter(i.get("word") for i in listed.items) == dict.fromkeys(WORDS, 4)
    images = [listed.image(i) for i in range(len(listed))]
    assert all(torch.equal(read.image(i), image) for i, image in enumerate(images))
    assert len({image.numpy().tobytes() for image in images}) == 4 * len(WORDS)


@pytest.mark.parametrize("chunk", [1, 12, 1 << 20])
def test_a_reader(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_COSINES", chunk)
    model, image = reader(vector, 0.15)
    outcomes = {}
    found = run(model, TextSpotting(WordImages(WORDS)), batch_size=7, outcomes=outcomes)
    wanted = figures(image, np.stack([vector(word) for word in WORDS]))
    assert wanted["/top1"] == 1.0 and wanted["/cosine_std"] > 0.001
    assert found == pytest.approx(wanted, abs=1e-6)
    for name, each in outcomes.items():
        assert np.mean(each.values) == pytest.approx(found[name.removeprefix("s/t")])
        assert each.keys[:2] == ["fish/black_on_white", "fish/white_on_black"]
    assert outcomes.keys() == {f"s/t/{name}" for name in ("cosine", "other_cosine", "top1")}


def test_a_model_that_sees_styles_alone():
    def by_style(pixels):
        return vector(str(np.frombuffer(pixels, np.uint8)[0]))

    found = run(Model(by_style, vector), TextSpotting(WordImages(WORDS)))
    grounds = [vector(str(COLOURS[style.split("_on_")[1]])) for style in STYLES]
    wanted = figures(np.tile(grounds, (len(WORDS), 1)), np.stack([vector(w) for w in WORDS]))
    assert wanted["/top1"] == 1 / len(WORDS)
    assert wanted["/cosine"] == pytest.approx(wanted["/other_cosine"])
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_collapsed_model_reads_nothing():
    found = run(
        Model(lambda _: vector("a"), lambda _: vector("a")), TextSpotting(WordImages(WORDS))
    )
    wanted = {
        "/cosine": 1,
        "/cosine_std": 0,
        "/other_cosine": 1,
        "/other_cosine_std": 0,
        "/top1": 0,
    }
    assert found == pytest.approx(wanted, abs=1e-6)


def test_cosines_are_cosines_under_another_similarity():
    """And the nearest word is the nearest by the distance of raw features."""

    def text(word):
        return vector(word, 0.05 if word == "sea" else len(word))

    model, image = reader(text, 0.4)
    texts = np.stack([text(word) for word in WORDS])
    task = TextSpotting(WordImages(WORDS))
    found = run(model, task, metric=Metric(SquaredDistance()))
    wanted = figures(image, texts)
    nearest = ((image[:, None] - texts) ** 2).sum(2).argmin(1)
    by_distance = (nearest == np.repeat(np.arange(len(WORDS)), 4)).mean()
    assert by_distance != wanted["/top1"]
    assert found == pytest.approx(wanted | {"/top1": by_distance}, abs=1e-6)


def test_by_style():
    model, image = reader(vector, 0.5)
    found = run(model, TextSpotting(WordImages(WORDS), by="style"))
    texts = np.stack([vector(word) for word in WORDS])
    each = [figures(image[i::4], texts) for i in range(4)]
    for style, wanted in zip(STYLES, each, strict=True):
        got = {name: found[f"_{style}{name}"] for name in wanted}
        assert got == pytest.approx(wanted, abs=1e-6)
    assert found["/cosine"] == pytest.approx(np.mean([w["/cosine"] for w in each]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": []}, "the words in `words` are none; give at least two"),
        ({"words": ["fish"]}, "hold one word, 'fish', and text spotting compares it with others"),
        ({"words": ["Fish", "fish"]}, "'Fish' and 'fish' are one word to tokenizers that lower"),
        ({"words": ["fish", "кот"]}, "'кот' cannot be drawn, since the font Aileron has no 'к'"),
        ({"words": ["fish", "w" * 20]}, "1 of 2, such as 'w+', are wider than 224 pixels"),
        ({"words": ["fish", "sea"], "image_size": 20}, "2 of 2, such as 'fish', are wider than 20"),
        ({"words": "none.txt"}, "words: .*none.txt cannot be read .*a word a line"),
        ({"words": "latin.txt"}, "words: .*latin.txt cannot be read .*name a text file in UTF-8"),
        ({"words": WORDS, "font": "latin.txt"}, "font: .*latin.txt cannot be read as a font"),
        ({"words": WORDS, "font_size": 0}, "font_size: 0 is not a number of pixels"),
        ({"words": WORDS, "image_size": -1}, "image_size: -1 is not a number of pixels"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, message):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        data = WordImages(**arguments)
        data.root = tmp_path
        TextSpotting(data).prepare()
    assert "\n" not in str(error.value)


def test_images_without_words_are_refused():
    with pytest.raises(ValueError, match="has no field 'word'"):
        TextSpotting(ToyImages(3), label="word").prepare()


def test_the_packaged_suite():
    suite = load_suite("text_spotting")
    ((data, chosen),) = prepare(suite).items()
    assert len(chosen) == 400 == len(data)
    assert data.image(0).shape == (3, 224, 224)
