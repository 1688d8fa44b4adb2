"""When two configurations mean the same training."""

import pytest
import tiny

from counterpoint.data.recipe import Source
from counterpoint.data.sidecar import Sidecar
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.config import signatures
from counterpoint.launch.config.identity import ROLES, Identity, Role, leaves, names, role
from counterpoint.launch.config.staged import identity_of, stages_of
from counterpoint.models.teachers.frozen import Teacher
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase

# Every key that does not train, by what it does; a new one has to be thought of here.
KEYS = {
    Role.WHERE: "run_dir mirror name evaluation.suite evaluation.every_n_steps "
    "evaluation.batch_size evaluation.tasks_at_once "
    "evaluation.data_root checkpoint.every_n_steps checkpoint.keep checkpoint.max_failures "
    "checkpoint.format "
    "watch.timeout trace.steps trace.memory_steps trace.ranks trace.nonfinite "
    "trainer.accelerator trainer.devices trainer.num_nodes trainer.callbacks "
    "trainer.max_time trainer.log_every_n_steps trainer.enable_progress_bar "
    "trainer.enable_model_summary trainer.profiler trainer.logger trainer.peak_tflops "
    "data.num_workers data.manifest data.cache data.allow_pipe data.sidecars.X.init_args.folder "
    "data.sidecars.X.init_args.max_open teachers.X.init_args.placement",
    Role.HOW: "trainer.strategy trainer.plugins trainer.compile trainer.deterministic "
    "trainer.benchmark trainer.detect_anomaly trainer.inference_mode "
    "trainer.accumulate_grad_batches model.chunks model.text_parts",
    Role.SEEDS: "seed",
    Role.ORDERS: "data.lanes data.block data.temperature data.keep_weights data.sources.X.share",
    Role.ADJUSTS: "init_from inherit_from trainer.precision data.keep_lists data.webdataset "
    "data.eval_transform data.max_error_rate grad_clip guard.max_nonfinite guard.spikes "
    "phases.X.samples phases.X.learning_rate phases.X.warmup_samples phases.X.cooldown_samples "
    "phases.X.timescale_samples phases.X.schedule phases.X.final_fraction phases.X.rate_batch "
    "phases.X.rate_scaling phases.X.image_reducer phases.X.text_reducer phases.X.word_reducer",
}
# Numbers of an optimizer adjust; all else about it trains.
OPTIMIZER = {"optim.class_path": "A", "optim.init_args.adamw": ["*head*"]}
OPTIMIZER |= {"optim.init_args.nesterov": True, "optim.init_args.form": [1.0, "a"]}
NUMBERS = {"optim.init_args.betas": [0.9, 0.95], "optim.init_args.groups.image.rate": 0.5}

# Wherever a term stands; tests/losses know their arguments.
OF_OBJECTIVES = {"objective.**.tile_bytes"}

CONFIG = {
    "name": "a",
    "data": {"manifest": "m", "num_workers": 2, "lanes": 16, "caption": ["txt"]},
    "model": {"image": {"class_path": "A", "init_args": {"depth": 4}}},
    "optim": {"weight_decay": 0.1},
    "phases": {"train": {"samples": 100}},
    "trainer": {"precision": "bf16-mixed", "devices": 2},
}
CHOSEN = {
    "phases": {"train": {"samples": 100}},
    "model": {"image": {"class_path": "A"}},
    "trainer": {"precision": "bf16-mixed"},
}


def changed(**slots) -> Identity:
    return Identity.of(CONFIG | slots, CHOSEN)


@pytest.mark.parametrize(
    "slots",
    [
        {"name": "b"},
        {"data": CONFIG["data"] | {"manifest": "elsewhere", "num_workers": 7}},
        {"trainer": CONFIG["trainer"] | {"devices": 8, "strategy": "fsdp2"}},
        {"model": CONFIG["model"] | {"chunks": 4, "text_parts": 1}},
        {"seed": 3},
    ],
)
def test_where_and_how_a_run_is_done_does_not_count(slots):
    assert changed(**slots) == changed()


@pytest.mark.parametrize(
    "slots",
    [
        {"data": CONFIG["data"] | {"lanes": 32}},
        {"data": CONFIG["data"] | {"caption": ["json:caption"]}},
        {"model": {"image": {"class_path": "A", "init_args": {"depth": 5}}}},
        {"trainer": CONFIG["trainer"] | {"precision": "32-true"}},
    ],
)
def test_what_is_trained_counts_even_where_it_is_a_default(slots):
    assert not changed(**slots).agrees(changed())
    assert not changed().agrees(changed(**slots))
    assert changed(**slots).digest != changed().digest


def test_a_result_is_of_the_precision_it_was_trained_in():
    def wanted(precision):
        trainer = {"trainer": {"precision": precision}}
        return Identity.of(CONFIG | trainer, {} if precision == "auto" else trainer)

    auto, bf16, fp32 = wanted("auto"), wanted("bf16-mixed"), wanted("32-true")
    assert not bf16.agrees(fp32) and not fp32.agrees(bf16)
    results = {name: auto.trained_in(name) for name in ("bf16-mixed", "32-true")}
    for name, result in results.items():
        assert result.values["trainer.precision"] == name
        # Whoever leaves it to the machine takes what other machines chose, or people named.
        assert auto.agrees(result) and auto.agrees(bf16) and result.agrees(fp32)
        # Whoever names one does not.
        assert bf16.agrees(result) == (name == "bf16-mixed")
    assert auto.trained_in(None) == auto


def test_a_key_that_only_a_later_version_knows_counts_once_it_is_chosen():
    later = CONFIG | {"optim": {"weight_decay": 0.1, "new": 3}}
    assert Identity.of(later, CHOSEN).agrees(changed())
    assert changed().agrees(Identity.of(later, CHOSEN))
    chosen = Identity.of(later, CHOSEN | {"optim": {"new": 3}})
    assert not chosen.agrees(changed()) and not changed().agrees(chosen)


def test_a_run_that_names_no_optimizer_is_one_of_adamw(tmp_path):
    def trained(*argv, **slots):
        values = {k: v for k, v in tiny.config(tmp_path / "m").items() if k != "optim"}
        path = tiny.write_config(tmp_path, values | slots)
        parser = run_config.make_parser()
        config = run_config.parse(parser, ["--config", str(path), *argv])
        return identity_of(stages_of(parser, {"": config}))

    name = f"{AdamW.__module__}.AdamW"
    without = trained()
    assert without.values["optim.class_path"] == name
    assert without == trained(optim={"class_path": name}) == trained(optim=None)
    other = trained("--optim.weight_decay", "0.3")
    assert (other.values["optim.class_path"], other.values["optim.init_args.weight_decay"]) == (
        name,
        0.3,
    )
    assert not without.agrees(other)


def test_a_slot_of_a_later_version_counts_once_it_is_chosen():
    now = {"grad_clip": None, "guard": {"max_nonfinite": 50, "spikes": None}}
    assert changed(**now).agrees(changed()) and changed().agrees(changed(**now))
    clip = {"grad_clip": {"class_path": "C", "init_args": {"z": 3}}}
    clipped = Identity.of(CONFIG | clip, CHOSEN | clip)
    assert not clipped.agrees(changed()) and not changed().agrees(clipped)
    # Both know whether there is one, though all its values are defaults.
    unclipped = changed(grad_clip=None)
    assert not Identity.of(CONFIG | clip, CHOSEN).agrees(unclipped)
    assert not unclipped.agrees(Identity.of(CONFIG | clip, CHOSEN))


def all_keys():
    yield from signatures.keys_of(run_config.make_parser())
    yield from (f"phases.X.{name}" for name in signatures.parameters(Phase))
    yield from (f"data.sources.X.{name}" for name in signatures.parameters(Source))
    yield from (f"data.sidecars.X.init_args.{name}" for name in signatures.parameters(Sidecar))
    for kind in signatures.classes(Teacher).values():
        yield from (f"teachers.X.init_args.{name}" for name in signatures.parameters(kind))


def test_every_key_has_the_role_that_it_should_have():
    expected = {name: kind for kind, keys in KEYS.items() for name in keys.split()}
    keys = set(all_keys()) - {"optim"}
    # Those of a further stream are those of the main one.
    of_stream = {
        k: k.replace("data.", "data.streams.X.init_args.", 1) for k in keys if "data." in k
    }
    expected |= {of_stream[k]: kind for k, kind in expected.items() if k in of_stream}
    keys |= set(of_stream.values())
    assert expected.keys() <= keys
    for name in keys:
        assert role(name, "a") is expected.get(name, Role.TRAINS), name
    assert {role(name, value) for name, value in OPTIMIZER.items()} == {Role.TRAINS}
    assert {role(name, value) for name, value in NUMBERS.items()} == {Role.ADJUSTS}
    # No line of the table is about a key that is gone.
    for pattern in ROLES.keys() - OF_OBJECTIVES:
        name = pattern.replace("*", "X")
        assert any(f"{key}.".startswith(f"{name}.") for key in {*keys, "optim"}), pattern


@pytest.mark.parametrize(
    "name", ["new", "data.new", "phases.train.new", "trainer.new", "model.x.y"]
)
def test_a_key_that_is_not_listed_trains(name):
    assert role(name) is Role.TRAINS
    # Names that only begin alike are not those of the table.
    assert role("watchful") is role("data.cached") is role("names") is Role.TRAINS


def test_memory_of_a_block_of_logits_makes_no_other_run():
    """A result of 32 MiB in numbers is one of the default of today, of 32 MiB on this machine."""
    for term in ("terms.clip", "terms.wide.init_args.term", "terms.a.init_args.b.init_args.c"):
        assert role(f"objective.{term}.init_args.tile_bytes") is Role.HOW
    assert role("objective.terms.tile_bytes_of.init_args.x") is Role.TRAINS
    assert role("model.image.init_args.tile_bytes") is Role.TRAINS


def test_it_survives_json():
    assert Identity.from_json(changed().to_json()) == changed()
    assert leaves({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}


def test_names_are_those_of_mappings_too_but_not_of_arguments_that_nobody_gave():
    tree = {"a": {"class_path": "A", "init_args": {}}, "b": {}, "c": {"init_args": {"d": [1]}}}
    found = ["a", "a.class_path", "b", "c", "c.init_args", "c.init_args.d"]
    assert list(names(tree)) == found
