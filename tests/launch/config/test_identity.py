"""When two configurations mean the same training."""

import pytest

from counterpoint.launch.config.identity import Identity, leaves, names

CONFIG = {
    "name": "a",
    "data": {"manifest": "m", "num_workers": 2, "lanes": 16, "caption": ["txt"]},
    "model": {"image": {"class_path": "A", "init_args": {"depth": 4}}},
    "optim": {"weight_decay": 0.1},
    "phases": {"train": {"samples": 100}},
    "trainer": {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "devices": 2},
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
        {"trainer": CONFIG["trainer"] | {"devices": 8}},
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


def test_adamw_by_its_class_is_adamw_as_it_always_stood():
    named = {"class_path": "counterpoint.train.optim.adamw.AdamW", "init_args": CONFIG["optim"]}
    now = {"optim": named, "grad_clip": None, "guard": {"max_nonfinite": 50, "spikes": None}}
    assert changed(**now).agrees(changed()) and changed().agrees(changed(**now))
    lion = named | {"class_path": "counterpoint.train.optim.timm_optimizers.Timm"}
    assert not changed(optim=lion).agrees(Identity.of(CONFIG, CHOSEN | {"optim": CONFIG["optim"]}))
    clip = {"grad_clip": {"class_path": "C", "init_args": {"z": 3}}}
    clipped = Identity.of(CONFIG | clip, CHOSEN | clip)
    assert not clipped.agrees(changed()) and not changed().agrees(clipped)


def test_it_survives_json():
    assert Identity.from_json(changed().to_json()) == changed()
    assert leaves({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}


def test_names_are_those_of_mappings_too_but_not_of_arguments_that_nobody_gave():
    tree = {"a": {"class_path": "A", "init_args": {}}, "b": {}, "c": {"init_args": {"d": [1]}}}
    found = ["a", "a.class_path", "b", "c", "c.init_args", "c.init_args.d"]
    assert list(names(tree)) == found
