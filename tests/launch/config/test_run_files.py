"""Run files, slots' files and options become one configuration; words of other trainers."""

import re

import pytest
import tiny
import yaml

from counterpoint.launch.config import parser as run_config
from counterpoint.launch.config import run_files, signatures, vocabulary
from counterpoint.train.optim.sophia import SophiaG
from counterpoint.train.phases import Phase

INFONCE = "counterpoint.losses.infonce.InfoNCE"


@pytest.fixture(scope="module")
def parser():
    return run_config.make_parser()


def parsed(parser, *argv):
    return run_config.plain(parser, run_config.parse(parser, list(argv)))


@pytest.mark.parametrize(
    ("slot", "name"),
    [
        ("model", "vit_b32"),
        ("objective", "siglip"),
        ("optim", "lion"),
        ("grad_clip", "zclip"),
        ("data", "pairs"),
        ("trainer", "gpu"),
    ],
)
def test_packaged_names_work_in_every_slot(parser, tmp_path, slot, name):
    packaged = run_files.load(run_files.CONFIGS / slot / f"{name}.yaml")
    base = run_files.load(run_files.CONFIGS / "run" / "emoji" / "emoji_clip.yaml")
    parts = {
        k: str(run_files.CONFIGS / "run" / "emoji" / v) for k, v in base.items() if ".." in str(v)
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(base | parts | {slot: name}))
    by_option = parsed(parser, "--config", "emoji_clip", f"--{slot}", name)
    assert parsed(parser, "--config", str(path)) == by_option
    # All of the packaged file, and nothing that the run's own file alone has.
    other = parsed(parser, "--config", "emoji_clip")[slot]
    assert packaged.items() <= _of(by_option[slot], packaged).items()
    assert by_option[slot] != other


def _of(found, wanted):
    if not isinstance(found, dict):
        return found
    return {key: _of(found[key], value) if isinstance(value, dict) else found[key]
            for key, value in wanted.items() if key in found}  # fmt: skip


def test_a_file_in_a_slot_leaves_nothing_of_the_one_before(parser, tmp_path):
    (tmp_path / "optim.yaml").write_text("class_path: counterpoint.train.optim.sophia.SophiaG\n")
    argv = ["--config", "emoji_clip", "--optim", str(tmp_path / "optim.yaml")]
    alone = parsed(parser, *argv)["optim"]["init_args"]
    defaults = signatures.parameters(SophiaG)
    assert alone["weight_decay"] == defaults["weight_decay"].default
    assert parsed(parser, "--config", "emoji_clip")["optim"]["init_args"] != alone


def test_an_empty_slot_has_its_defaults(parser, tmp_path):
    (tmp_path / "more.yaml").write_text("name: emoji_clip\nevaluation:\n")
    before = parsed(parser, "--config", "emoji_clip")
    evaluation = {"suite": None, "every_n_steps": 10**9}
    for more in (["--evaluation", "null"], ["--config", str(tmp_path / "more.yaml")]):
        found = parsed(parser, "--config", "emoji_clip", *more)
        assert found == before | {"evaluation": before["evaluation"] | evaluation}


def test_a_later_file_and_options_override_leaves(parser, tmp_path):
    (tmp_path / "more.yaml").write_text("phases: {train: {samples: 999}}\nname: mine\n")
    more = ["--config", str(tmp_path / "more.yaml")]
    found = parsed(parser, "emoji_clip", *more, "--phases.train.batch_size", "9")
    before = parsed(parser, "--config", "emoji_clip")
    train = before["phases"]["train"] | {"samples": 999, "batch_size": 9}
    assert found == before | {"name": "mine", "phases": {"train": train}}


def test_values_reach_the_parser_as_they_stand_in_the_file(parser, tmp_path):
    (tmp_path / "run.yaml").write_text(
        'name: "1e-3"\ntrainer: {accelerator: cpu, log_every_n_steps: 1_0}\nmodel: vit_b32\n'
        "data: {manifest: [a, 'b: c'], max_error_rate: 1e-2}\nobjective: clip\n"
        "phases: {train: {samples: 1_000, batch_size: 10, learning_rate: 1e-3}}\n"
    )
    found = parsed(parser, "--config", str(tmp_path / "run.yaml"))
    assert (found["name"], found["trainer"]["log_every_n_steps"]) == ("1e-3", 10)
    assert found["data"]["manifest"] == ["a", "b: c"]
    assert found["phases"]["train"]["samples"] == 1000
    assert found["phases"]["train"]["learning_rate"] == 1e-3


def test_the_keys_known_early_are_the_parsers(parser):
    accepted = {name.partition(".")[0] for name in signatures.keys_of(parser)}
    assert accepted | {"config", "stages"} == set(run_files.KEYS)


def test_words_of_other_trainers_are_no_keys_of_ours(parser):
    trainer = {n.partition(".")[2] for n in signatures.keys_of(parser) if n.startswith("trainer.")}
    assert set(vocabulary.WORDS) & trainer == set(vocabulary.TRAINER_WORDS) & set(vocabulary.WORDS)
    phase = set(signatures.parameters(Phase))
    assert set(vocabulary.WORDS) & phase == vocabulary.PHASE_WORDS
    assert set(vocabulary.WORDS).isdisjoint(run_files.KEYS)


def test_where_words_point_to_are_keys(parser):
    phase = {f"phases.NAME.{name}" for name in signatures.parameters(Phase)}
    accepted = {*signatures.keys_of(parser), *phase, *run_files.KEYS}
    named = {
        key
        for text in vocabulary.WORDS.values()
        for key in re.findall(r"\b(?:phases\.NAME|trainer|data|evaluation|checkpoint)\.\w+", text)
    }
    assert len(named) > 15 and named - accepted == set()


@pytest.mark.parametrize("key", vocabulary.VALUES)
def test_meant_values_are_accepted(parser, key):
    kind = signatures.keys_of(parser)[key].kind
    for word, meant in vocabulary.VALUES[key].items():
        assert signatures.accepts(kind, meant.partition(" ")[0])
        assert not signatures.accepts(kind, word)


def test_defaults_that_a_term_inherits_are_not_chosen(parser, tmp_path):
    """Arguments that reach a base class through `**kwargs` count as defaults, too."""
    terms = {"a": "infonce.InfoNCE", "b": "distillation.clip_refine.HyCD"}
    given = {"a": {"tile_bytes": 1000}, "b": {"teachers": ["teacher.x"], "alpha": 0.5}}
    values = tiny.config(tmp_path / "m") | {
        "objective": {
            "terms": {
                key: {"class_path": f"counterpoint.losses.{path}", "init_args": given[key]}
                for key, path in terms.items()
            }
        }
    }
    config = run_config.parse(parser, ["--config", str(tiny.write_config(tmp_path, values))])
    resolved = run_config.plain(parser, config)["objective"]["terms"]["b"]["init_args"]
    assert resolved.keys() == {"teachers", "alpha", "form", "scale", "exchange", "tile_bytes"}
    chosen = run_config.without_defaults(parser, config)["objective"]["terms"]
    assert chosen["a"]["init_args"] == given["a"]
    assert chosen["b"]["init_args"] == {"teachers": ["teacher.x"]}
