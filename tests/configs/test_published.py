"""Shipped configurations have the numbers that papers publish, or say why they do not."""

import re
from collections import Counter
from pathlib import Path

import pytest
import shipped_values
import yaml
from shipped_values import CONFIGS

from counterpoint.launch.config import parser as run_config
from counterpoint.launch.config.run_files import read
from counterpoint.launch.config.staged import parse_stages

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "methods" / "published"
UNKNOWN = "unknown"
KEYS = {"what", "published", "source", "same", "differs", "absent"}
# `code FILE:LINE` of the method's repository, or of another one, `OWNER/NAME@COMMIT FILE:LINE`.
CODE = re.compile(r"^code (?P<other>[\w.-]+/[\w.-]+@[0-9a-f]{7,40} )?[^\s:]+:\d+")
REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+@[0-9a-f]{7,40}$")
PAPER = re.compile(r"^paper .*\b(section|table|equation|appendix|figure|algorithm) \w")
OTHER = re.compile(r"^(abstract|summary .+|memory .+|none .+)")
# What each phase of a complete run has to account for.
OF_PHASES = ("samples", "batch_size", "learning_rate", "warmup_samples")
OF_RUNS = ("optim.weight_decay", "grad_clip", "data.train_transform")

METHODS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.yaml"))
}
WITHOUT = {
    file: group["because"] for group in METHODS.pop("without_paper") for file in group["files"]
}
ENTRIES = [
    pytest.param(method, entry, id=f"{name}-{number}")
    for name, method in METHODS.items()
    for number, entry in enumerate(method["constants"])
]


def places(entry):
    return [*entry.get("same", []), *entry.get("differs", {})]


ACCOUNTED = Counter(
    place for method in METHODS.values() for entry in method["constants"] for place in places(entry)
)


@pytest.mark.parametrize(("method", "entry"), ENTRIES)
def test_shipped_values(method, entry):
    published = entry["published"]
    for place in entry.get("same", []):
        shipped = shipped_values.value(place)
        assert shipped_values.same(shipped, published), (
            f"{place} is {shipped!r}, where {published!r} is published ({entry['source']}): change "
            "the configuration, or list it under `differs` with the reason"
        )
    for place, own in entry.get("differs", {}).items():
        shipped = shipped_values.value(place)
        assert set(own) == {"is", "because"}, f"{place}: write {{is: ..., because: ...}}"
        assert shipped_values.same(shipped, own["is"]), (
            f"{place} is {shipped!r}; {entry['what']} says that it is {own['is']!r}"
        )
        assert published == UNKNOWN or not shipped_values.same(shipped, published), (
            f"{place} is what is published: move it to `same`"
        )
        file = place.partition(" ")[0]
        reason = " ".join(own["because"].split())
        assert len(reason) > 10 and reason in shipped_values.comments(file), (
            f"configs/{file}.yaml, and the parts that it names, have no comment with these words: "
            f"{reason}"
        )


@pytest.mark.parametrize(("method", "entry"), ENTRIES)
def test_sources(method, entry):
    assert set(entry) <= KEYS and {"what", "published", "source"} <= set(entry)
    source = entry["source"]
    code = CODE.match(source)
    assert code or PAPER.match(source) or OTHER.match(source), (
        f"{source!r}: write `code FILE:LINE`, `paper ... section N`, `abstract`, "
        "`summary OF WHAT`, `memory OF WHAT` or, of what is ours, `none WHERE`"
    )
    if code and not code["other"]:
        assert REPOSITORY.match(method["code"]), "code: OWNER/NAME@COMMIT"
    assert source.startswith("none") == (entry["published"] == UNKNOWN)
    assert places(entry) or len(entry["absent"]) > 10, "name places, or why there is none"
    assert not (entry["published"] == UNKNOWN and entry.get("same"))


@pytest.mark.parametrize("name", METHODS)
def test_method(name):
    method = METHODS[name]
    assert set(method) <= {"title", "paper", "code", "note", "constants"}
    assert method["title"] and method["paper"] and method["constants"]


def test_each_place_once():
    assert [place for place, count in ACCOUNTED.items() if count > 1] == []


def files_of(folder, pattern="*.yaml"):
    for path in sorted((CONFIGS / folder).glob(pattern)):
        yield path.relative_to(CONFIGS).with_suffix("").as_posix()


def test_every_objective_and_run_has_entries_or_a_reason():
    files = {*files_of("objective"), *files_of("run", "**/*.yaml"), *files_of("grad_clip")}
    named = {place.partition(" ")[0] for place in ACCOUNTED}
    assert files - named - set(WITHOUT) == set(), "no entries, and not in without_paper.yaml"
    assert set(WITHOUT) & named == set() and set(WITHOUT) <= files
    assert all(len(reason) > 10 for reason in WITHOUT.values())


COMPLETE = [name for name in (*files_of("run"), *files_of("run/recipes")) if name not in WITHOUT]


@pytest.mark.parametrize("file", COMPLETE)
def test_every_number_of_a_recipe_is_accounted_for(file):
    run = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text(encoding="utf-8"))
    stages = {f"stages.{name}.": own for name, own in run.get("stages", {}).items()}
    wanted = set()
    for prefix, own in (stages or {"": run}).items():
        wanted |= {f"{prefix}phases.{p}.{key}" for p in own["phases"] for key in OF_PHASES}
    wanted |= {f"{next(iter(stages), '')}{key}" for key in OF_RUNS}
    named = {place.partition(" ")[2] for place in ACCOUNTED if place.startswith(f"{file} ")}
    assert {key for key in wanted if not any(f"{n}.".startswith(f"{key}.") for n in named)} == set()


OF_PARSER = sorted(file for file in {p.partition(" ")[0] for p in ACCOUNTED} if "run/" in file)


@pytest.mark.soak
@pytest.mark.parametrize("file", OF_PARSER)
def test_the_parser_agrees(file):
    """What is read from the files is what the run's parser makes of them."""
    parser = run_config.make_parser()
    argv = ["--config", str(CONFIGS / f"{file}.yaml")]
    parsed = {
        stage: run_config.plain(parser, config)
        for stage, config in parse_stages(parser, read(argv)).items()
    }
    for place in filter(lambda place: place.startswith(f"{file} "), ACCOUNTED):
        stage, *keys = ("." + place.partition(" ")[2]).replace(".stages.", "", 1).split(".")
        node = parsed[stage]
        for key in keys:
            node = node or {}  # an empty slot
            arguments = node if key == "class_path" else node.get("init_args") or node
            node = arguments.get(key)
        # What is empty, a term makes itself, and a weight that is not named is 1.
        assert node is None or shipped_values.same(node, shipped_values.value(place)), place
