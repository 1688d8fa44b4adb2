"""Retrieval and zero-shot by language against brute force over all scores."""

import numpy as np
import pytest
from vector_model import NAMES, Classes, features, run, texts

from counterpoint.data.corpora.emoji.corpus import Settings, build_emoji
from counterpoint.launch.config.suites import load_suite
from counterpoint.train.evaluation.evaluate import prepare
from counterpoint.train.evaluation.languages import (
    ByLanguage,
    RetrievalByLanguage,
    ZeroShotByLanguage,
)

LANGUAGES = ("en", "de", "fr")
FRENCH = {"Ant": "F", "Bee": "A", "Cat": "C", "Dog": "C", "Eel": "B", "Fox": "B", "Gnu": "G"}


def named(i, label):
    """German mixes up some names, French has one word for several animals."""
    return {"names": {"en": f"{label} {i // 2}", "de": f"{label[::-1]} {i}", "fr": FRENCH[label]}}


def images():
    return Classes(40, seed=6, fields=named)


def names(data, language):
    return [item.fields["names"][language] for item in data.items]


def brute_force(queries, candidates, is_right, k):
    """A query hits when one of its first k candidates, by score, is right."""
    hits = []
    for row, right in zip(queries @ candidates.T, is_right, strict=True):
        hits.append(any(right[j] for j in np.argsort(-row)[:k]))
    return np.mean(hits)


def by_hand(data, language, k):
    """Both recalls: one text for equal names, right for all images with that name."""
    own = names(data, language)
    distinct = sorted(set(own))
    is_right = np.array([[name == text for text in distinct] for name in own])
    image, text = features(data), texts(distinct)
    return brute_force(image, text, is_right, k), brute_force(text, image, is_right.T, k)


def test_retrieval_is_that_of_brute_force_in_every_language():
    data = images()
    assert len(set(names(data, "fr"))) < len(NAMES)
    found = run_by_group(RetrievalByLanguage(data, LANGUAGES, k=[1, 3]))
    for k in (1, 3):
        ways = {language: by_hand(data, language, k) for language in LANGUAGES}
        assert len({ways[language] for language in LANGUAGES}) == 3
        for language, (to_text, to_image) in ways.items():
            of = found[language]
            assert of[f"image_to_text_recall@{k}"] == pytest.approx(to_text)
            assert of[f"text_to_image_recall@{k}"] == pytest.approx(to_image)
            assert of[f"recall@{k}"] == pytest.approx((to_text + to_image) / 2)
        both = {language: sum(way) / 2 for language, way in ways.items()}
        assert found[""][f"recall@{k}"] == pytest.approx(sum(both.values()) / 3)
        assert found["except_en"][f"recall@{k}"] == pytest.approx((both["de"] + both["fr"]) / 2)


def test_a_tower_may_be_told_the_language():
    data = images()
    plain = run_by_group(RetrievalByLanguage(data, ["en", "de"]))
    named = run_by_group(RetrievalByLanguage(data, ["en", "de"], template="<{language}> {c}"))
    each = {"en": "eng {c}", "de": "deu {c}"}
    assert run_by_group(RetrievalByLanguage(data, ["en", "de"], template=each)) != plain
    own = sorted(set(names(data, "de")), key=names(data, "de").index)
    to_text = brute_force(
        features(data),
        texts([f"<de> {name}" for name in own]),
        np.array([[name == text for text in own] for name in names(data, "de")]),
        1,
    )
    assert named["de"]["image_to_text_recall@1"] == pytest.approx(to_text)
    zero_shot = ZeroShotByLanguage(data, ["en", "de"], templates=["<{language}> {c}"])
    other = ZeroShotByLanguage(
        data, ["en", "de"], templates={"en": ["<en> {c}"], "de": ["<de> {c}"]}
    )
    assert run_by_group(zero_shot) == run_by_group(other)
    with pytest.raises(ValueError, match="has none for the language 'fr'"):
        RetrievalByLanguage(data, LANGUAGES, template=each)
    with pytest.raises(ValueError, match=r"has no \{c\} for the caption"):
        RetrievalByLanguage(data, LANGUAGES, template="{language}")


def test_zero_shot_is_that_of_brute_force_in_every_language():
    data = images()
    templates = {"en": ["a {c}"], "de": ["{c}", "ein {c}"], "fr": ["{c}"]}
    found = run_by_group(ZeroShotByLanguage(data, LANGUAGES, templates=templates, apart="fr"))
    by_hand = {}
    for language in LANGUAGES:
        classes = sorted(set(names(data, language)))
        each = [texts([t.replace("{c}", c) for c in classes]) for t in templates[language]]
        answers = (features(data) @ np.mean(each, axis=0).T / norm(np.mean(each, axis=0))).argmax(1)
        by_hand[language] = np.mean(
            [classes[a] for a in answers] == np.array(names(data, language))
        )
        assert found[language]["top1"] == pytest.approx(by_hand[language])
    assert found[""]["top1"] == pytest.approx(np.mean(list(by_hand.values())))
    assert found["except_fr"]["top1"] == pytest.approx((by_hand["en"] + by_hand["de"]) / 2)


def norm(rows):
    return np.linalg.norm(rows, axis=1)


def run_by_group(task):
    """Results as {group: {measure: value}}."""
    found = {}
    for name, value in run(task).items():
        group, _, measure = name.removeprefix("s/t").removeprefix("_").rpartition("/")
        found.setdefault(group, {})[measure] = value
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"languages": ["en", "de"], "captions": "names.de"}, "write {language} in the place"),
        ({"languages": ["de", "fr"]}, "apart: 'en' has to be one of several languages"),
        ({"languages": ["en"]}, "null leaves out the mean"),
        ({"languages": ["en", "en"]}, "not a list of languages, each once"),
        ({"languages": "en"}, "not a list of languages"),
    ],
)
def test_what_is_no_list_of_languages_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RetrievalByLanguage(images(), **arguments)


def test_a_language_without_prompts_or_names_is_named():
    with pytest.raises(ValueError, match="no prompts in the language 'de'"):
        ZeroShotByLanguage(images(), LANGUAGES, templates={"en": ["{c}"], "fr": ["{c}"]})
    with pytest.raises(ValueError, match=r"no caption 'names\.la'"):
        run(RetrievalByLanguage(images(), ["en", "la"]))


def test_the_suite_of_the_emoji_has_all_their_languages(tmp_path):
    build_emoji(tmp_path / "emoji", Settings(num_held_out=2, limit=24))
    suite = load_suite("emoji_languages", tmp_path / "emoji")
    prepare(suite)
    for task in suite.tasks.values():
        assert isinstance(task, ByLanguage)
        names = [set(item.get("names")) for item in task.data.items]
        assert len(names) == 4 and all(set(task.fields) == each for each in names)
        assert len(task.fields) == 14
