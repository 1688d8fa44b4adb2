"""What may change when a run continues, and what may not."""

import pytest
import torch

from counterpoint.launch.run.resume import check_groups, check_resume
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.param_groups import Groups, Tower


def test_what_may_change_on_resume():
    saved = {
        "seed": 0,
        "model": {"embed_dim": 8, "chunks": 1},
        "objective": {},
        "data": {"lanes": 2, "num_workers": 1},
        "phases": {"train": {"batch_size": 12, "samples": 48, "learning_rate": 1.0}},
        "trainer": {"devices": 1},
    }
    wanted = saved | {
        "data": {"lanes": 2, "num_workers": 4},
        "phases": {
            "train": {"batch_size": 12, "samples": 96, "learning_rate": 0.5},
            "tune": {"batch_size": 6, "samples": 6, "learning_rate": 0.1},
        },
        "trainer": {"devices": 2},
        "model": {"embed_dim": 8, "chunks": 4, "text_parts": 2},
    }
    check_resume(saved, wanted, "a", "a", 4)
    teacher = {"class_path": "Frozen", "init_args": {"source": "x"}}
    moved = {"class_path": "Frozen", "init_args": {"source": "x", "placement": "host"}}
    other = {"class_path": "Frozen", "init_args": {"source": "y"}}
    taught = saved | {"teachers": {"t": teacher}}
    check_resume(taught, wanted | {"teachers": {"t": moved}}, "a", "a", 4)
    with pytest.raises(ValueError, match=r"teachers\.t\.init_args\.source: x -> y"):
        check_resume(taught, wanted | {"teachers": {"t": other}}, "a", "a", 4)
    with pytest.raises(ValueError, match=r"data\.lanes: 2 -> 3"):
        check_resume(saved, wanted | {"data": {"lanes": 3}}, "a", "a", 4)
    with pytest.raises(ValueError, match=r"data\.caption_same_as: None -> teacher\.caption"):
        data = saved["data"] | {"caption_same_as": "teacher.caption"}
        check_resume(saved, wanted | {"data": data}, "a", "a", 4)
    with pytest.raises(ValueError, match="phases: "):
        check_resume(wanted, saved, "a", "a", 4)
    # Past the first phase its length moves where the second one begins.
    longer = wanted | {"phases": wanted["phases"] | {"train": saved["phases"]["train"]}}
    check_resume(wanted, longer, "a", "a", 4)
    with pytest.raises(ValueError, match=r"step 5 would begin after 54 samples, .* had seen 60"):
        check_resume(wanted, longer, "a", "a", 5)


def test_what_a_later_version_adds_may_be_missing():
    term = {"class_path": "InfoNCE", "init_args": {"scale": "logit_scale"}}
    saved = {"seed": 0, "model": {"width": 8}, "objective": {"terms": {"a": term}}, "phases": {}}
    saved |= {"data": {"views": {}, "lanes": 2}, "optim": optim(weight_decay=0.1)}
    new = {"class_path": "InfoNCE", "init_args": {"scale": "logit_scale", "tile": 4}}
    wanted = saved | {"ema": None, "model": {"width": 8, "more": {"a": 1}}}
    wanted |= {
        "objective": {"terms": {"a": new}},
        "data": {"views": None, "lanes": 2, "key_field": "k"},
    }
    known = {"objective.terms.a.class_path"}
    check_resume(saved, wanted, "a", "a", 0, known)
    for name in ("model.more.a", "objective.terms.a.init_args.tile", "data.key_field"):
        with pytest.raises(ValueError, match=rf"resume: {name}: None -> [^;]*\. A resumed"):
            check_resume(saved, wanted, "a", "a", 0, known | {name})
    with pytest.raises(
        ValueError, match=r"data\.key_field: .*; model\.more\.a: .*init_args\.tile: "
    ):
        check_resume(saved, wanted, "a", "a", 0)
    # What both know has to be the same, named or not.
    was, now = ({"optim": optim("Muon", adamw=patterns)} for patterns in ([], ["*head*"]))
    with pytest.raises(ValueError, match=r"init_args\.adamw: None -> \['\*head\*'\]"):
        check_resume(saved | was, wanted | now, "a", "a", 0, known)
    with pytest.raises(ValueError, match=r"data\.lanes: 2 -> 3"):
        check_resume(saved, wanted | {"data": {"lanes": 3}}, "a", "a", 0, known)
    with pytest.raises(ValueError, match=r"seed: 0 -> 4"):
        check_resume(saved, wanted | {"seed": 4}, "a", "a", 0, known)


def optim(kind="AdamW", **arguments):
    groups = {"image": {"rate": 1.0, "weight_decay": None}, "no_decay": [], "frozen": []}
    return {
        "class_path": f"counterpoint.train.optim.adamw.{kind}",
        "init_args": {"groups": groups} | arguments,
    }


@pytest.mark.parametrize(
    ("saved", "wanted", "refused"),
    [
        (optim(betas=[0.9, 0.98]), optim(betas=[0.9, 0.95], weight_decay=0.1), None),
        (optim(), optim(groups={"image": {"rate": 0.5, "weight_decay": 0.1}}), None),
        (optim(), optim("Lion"), r"optim\.class_path: .*AdamW -> .*Lion"),
        (optim("Lion"), optim(), r"optim\.class_path: .*Lion -> .*AdamW"),
        (optim(), optim(groups={"frozen": ["a"]}), r"groups\.frozen: None -> \['a'\]\. A resumed"),
        (optim(adamw=["a"]), optim(adamw=["b"]), r"adamw: \['a'\] -> \['b'\]"),
        (optim(nesterov=True), optim(nesterov=False), "nesterov: True -> False"),
    ],
)
def test_numbers_of_an_optimizer_may_change_on_resume(saved, wanted, refused):
    run = {"data": {}, "phases": {}}
    if refused is None:
        check_resume(run | {"optim": saved}, run | {"optim": wanted}, "a", "a", 0)
        return
    with pytest.raises(ValueError, match=refused):
        check_resume(run | {"optim": saved}, run | {"optim": wanted}, "a", "a", 0)


def test_groups_may_not_be_split_or_joined_on_resume():
    model = torch.nn.ModuleDict({"image": torch.nn.Linear(2, 2), "text": torch.nn.Linear(2, 2)})
    half = Groups(image=Tower(rate=0.5))
    saved = AdamW(groups=half).build(model).state_dict()
    check_groups(saved, AdamW(groups=Groups(image=Tower(rate=0.1)), weight_decay=0.3).build(model))
    with pytest.raises(ValueError, match=r"groups of \[2, 2\] .* had \[1, 1, 1, 1\]"):
        check_groups(saved, AdamW().build(model))
    with pytest.raises(ValueError, match=r"groups of \[1, 1, 1, 1\] .* had \[2, 2\]"):
        check_groups(AdamW().build(model).state_dict(), AdamW(groups=half).build(model))


def test_a_key_that_no_table_knows_is_fixed():
    run = {"seed": 0, "data": {"lanes": 2}, "phases": {"train": {"samples": 8, "batch_size": 4}}}
    for slot, changed in (
        ("data", {"lanes": 2, "new": "b"}),
        ("phases", {"train": {"samples": 8, "batch_size": 4, "new": "b"}}),
        ("slot", {"new": "b"}),
    ):
        with pytest.raises(ValueError, match=rf"cannot resume: {slot}\.(train\.)?new: None -> b\."):
            check_resume(run, run | {slot: changed}, "a", "a", 0)


def test_what_is_taken_away_is_a_change():
    teacher = {"t": {"class_path": "Frozen", "init_args": {"source": "x"}}}
    run = {"data": {"views": {"a": {"size": 8}}}, "phases": {}, "teachers": teacher, "ema": None}
    check_resume(run, run, "a", "a", 0, ())
    with pytest.raises(ValueError, match=r"teachers\.t\.class_path: Frozen -> None"):
        check_resume(run, run | {"teachers": None}, "a", "a", 0, ())
    with pytest.raises(ValueError, match=r"data\.views\.a\.size: 8 -> None"):
        check_resume(run, run | {"data": {"views": {}}}, "a", "a", 0, ())
    # Though at its default: both sides know whether there is an average.
    with pytest.raises(ValueError, match=r"ema\.decay: None -> 0\.99"):
        check_resume(run, run | {"ema": {"decay": 0.99}}, "a", "a", 0, ())
