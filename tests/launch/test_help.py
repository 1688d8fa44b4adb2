"""The page of `fit --help` says what is so, and the listings by slot hold all that is ours."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from counterpoint.launch.cli import main
from counterpoint.launch.config import fit_help, signatures, slot_help
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.config.diagnosis import check_words
from counterpoint.launch.config.run_files import SLOTS, read
from counterpoint.train.phases import Phase

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def keys():
    """Every key of a run file with its default, phases included."""
    phase = {f"phases.train.{n}": p for n, p in signatures.parameters(Phase).items()}
    return signatures.keys_of(run_config.make_parser()) | phase


@pytest.fixture(scope="module")
def listings():
    return {slot: slot_help.listing(slot) for slot in SLOTS}


def test_the_page_is_a_page():
    lines = fit_help.page().splitlines()
    assert len(lines) < 120 and max(map(len, lines)) <= 105
    assert "--print_config" in fit_help.page() and "--help SLOT" in fit_help.page()


def test_the_commands_on_the_page_are_understood():
    lines = [line.split() for line in fit_help.page().splitlines()]
    calls = [words[2:] for words in lines if words[:2] == ["counterpoint", "fit"]]
    started = [call for call in calls if call[0] == "--config"]
    assert len(started) == 4
    for call in started:
        check_words(read(call))


@pytest.mark.parametrize(
    ("key", "default"), [row[:2] for rows in fit_help.OPTIONS.values() for row in rows]
)
def test_defaults_on_the_page_are_the_parsers(keys, key, default):
    parameter = keys[key]
    assert f"--{key} " in fit_help.page()
    if default == fit_help.REQUIRED:
        needed = {*signatures.required_keys(run_config.make_parser())}
        needed.add("data.manifest")  # of all runs that have no data.webdataset: make_pairs says so
        assert parameter.default is signatures.REQUIRED or key in needed
        return
    found = parameter.default
    assert (list(found) if isinstance(found, tuple) else found) == yaml.safe_load(default)


def test_every_slot_is_on_the_page():
    assert set(fit_help.ABOUT) == set(SLOTS)
    assert all(f"\n  {slot} " in fit_help.page() for slot in SLOTS)


def test_every_key_is_in_its_slots_listing(keys, listings):
    slots = {key: key.partition(".")[0] for key in keys if key.partition(".")[0] in SLOTS}
    assert len(slots) > 60
    shown = {key.replace("phases.train.", "phases.NAME."): slot for key, slot in slots.items()}
    assert [
        k for k, slot in shown.items() if k != "phases" and f"--{k}" not in listings[slot]
    ] == []


def classes_in(folder: str, base: str) -> set[str]:
    """Names of the classes derived from `base`, directly or not, read from the text of the code."""
    parents = {}
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = {getattr(b, "id", getattr(b, "attr", "")) for b in node.bases}
    found = {base}
    while more := {name for name, above in parents.items() if above & found} - found:
        found |= more
    return {name for name in found - {base} if not name.startswith("_")}


@pytest.mark.parametrize(
    ("slot", "base"),
    [
        ("objective", "losses.base:Term"),
        ("objective", "losses.scalars:Scalar"),
        ("objective", "losses.components.similarity:Similarity"),
        ("objective", "losses.components.heads:MLP"),
        ("phases", "models.reducers.base:ImageReducer"),
        ("phases", "models.reducers.base:TextReducer"),
        ("grad_clip", "train.grad_clip.base:Clipper"),
        ("optim", "train.optim.adamw:AdamW"),
        ("data", "data.text.tokenize:Tokenizer"),
        ("data", "data.images.transforms:Transform"),
        ("model", "models.image:ImageTower"),
        ("model", "models.text.base:TextTower"),
        ("teachers", "models.teachers.frozen:Teacher"),
    ],
)
def test_every_class_of_ours_is_in_a_listing(listings, slot, base):
    kind = pkgutil.resolve_name(f"counterpoint.{base}")
    found = classes_in(base.partition(".")[0], kind.__name__)
    concrete = found & set(signatures.classes(kind))
    assert concrete
    lines = listings[slot].splitlines()
    missing = [n for n in concrete if not any(line.endswith(f".{n}") for line in lines)]
    assert missing == []


def test_listings_have_no_classes_of_torch(listings):
    lines = [line for text in listings.values() for line in text.splitlines()]
    classes = [line.strip() for line in lines if re.fullmatch(r"  \w+(\.\w+)+", line)]
    assert len(classes) > 60
    assert [name for name in classes if not name.startswith("counterpoint.")] == []
    assert all(len(text.splitlines()) < 800 for text in listings.values())


def test_a_class_is_listed_with_its_arguments(listings):
    lines = listings["objective"].splitlines()
    at = lines.index("  counterpoint.losses.scalars.Temperature")
    assert "inverse of a temperature" in lines[at + 1]
    assert lines[at + 3] == "      lowest: bounds of the scale. (a number; default 1.0)" or (
        lines[at + 3].startswith("      lowest") and "default 1.0" in lines[at + 3]
    )


@pytest.mark.parametrize(
    "words", ["--help grad_clip", "-h grad_clip", "--grad_clip.help", "--help=grad_clip"]
)
def test_ways_to_ask_for_a_slot(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "emoji_clip", *words.split()])
    assert end.value.code == 0
    assert "counterpoint.train.grad_clip.zclip.ZClip" in capsys.readouterr().out


def test_a_slot_that_is_not_there(capsys):
    assert main(["fit", "--help", "optimm"]) == 2
    text = capsys.readouterr().err
    assert "did you mean optim?" in text and text.count("\n") == 1
