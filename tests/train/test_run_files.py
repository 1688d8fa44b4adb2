"""The files of a run: metrics that are cut on resume, checkpoints that are whole or absent."""

import json
from unittest.mock import Mock

import pytest
import torch

from counterpoint.data.files import beside
from counterpoint.train.callbacks.metrics import MetricsFile, highest, peak_memory, read_rows
from counterpoint.train.checkpointing.checkpoint import AtomicCheckpointIO, load, newest, step_of
from counterpoint.train.checkpointing.resume_checks import check_groups, check_resume
from counterpoint.train.distributed import average
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.param_groups import Groups, Tower


def test_rows_after_the_resumed_step_are_cut_and_the_clock_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "wall": 10.0 * s, "loss": 1.0 / s} for s in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "wa')
    file = MetricsFile(path, resume_step=3)
    assert read_rows(path) == rows[:3]
    file.log_row({"loss": 0.5}, 4)
    assert read_rows(path)[-1]["step"] == 4
    assert read_rows(path)[-1]["wall"] >= 30.0


def test_what_others_log_goes_into_the_next_row(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", resume_step=None)
    file.log_metrics({"theirs": 1.0, "epoch": 0}, 3)  # Lightning counts from 0
    assert read_rows(file.path) == []
    file.log_row({"loss": 0.5}, 4)
    file.log_row({"suite/task/top1": 0.2}, 4)
    file.log_metrics({"theirs": 2.0}, 4)
    file.finalize("success")
    file.finalize("success")
    rows = [{k: v for k, v in row.items() if k != "wall"} for row in read_rows(file.path)]
    assert rows == [
        {"step": 4, "theirs": 1.0, "loss": 0.5},
        {"step": 4, "suite/task/top1": 0.2},
        {"step": 4, "theirs": 2.0},
    ]
    assert file.steps == {"theirs": 4, "loss": 4, "suite/task/top1": 4}


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "wall": 2}\n')
    MetricsFile(path, resume_step=None)
    assert read_rows(path) == []


def mean_on(rank, world_size):
    return average([torch.tensor(float(rank)), torch.tensor(2.0)])


def test_values_are_averaged_over_ranks(gloo):
    assert gloo(2, mean_on) == [[0.5, 2.0]] * 2


def highest_on(rank, world_size):
    return highest([2.5, 7.25, 1.0][rank], torch.device("cpu"))


def test_the_rank_that_needs_most_memory_is_told(gloo, monkeypatch):
    assert gloo(3, highest_on) == [7.25] * 3
    assert highest(0.5, torch.device("cpu")) == 0.5
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    assert peak_memory(torch.device("cuda")) == 1.5
    held = torch.ones(1 << 26)  # 256 MiB that are resident, since they were written
    assert peak_memory(torch.device("cpu")) >= held.nbytes / 2**30


def test_a_failed_write_leaves_the_last_checkpoint_alone(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    path = tmp_path / "checkpoints" / "step-00000005.ckpt"
    io.save_checkpoint({"x": torch.ones(3)}, path)

    def half(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    io.save_checkpoint({"x": torch.zeros(3)}, path)
    assert "No space" in str(io.failure)
    assert torch.equal(load(path)["x"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_write_is_told_to_all_ranks_whatever_failed(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    path = tmp_path / "step-00000005.ckpt"
    for error in (RuntimeError("unexpected pos 64 vs 0"), TypeError("cannot pickle this")):
        monkeypatch.setattr(torch, "save", Mock(side_effect=error))
        io.save_checkpoint({"x": torch.ones(3)}, path)  # raised here, it would leave them waiting
        assert str(io.failure) == f"{type(error).__name__}: {error}"
    assert list(tmp_path.iterdir()) == []


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    assert newest(tmp_path) is None
    part = beside(tmp_path / "step-00000200.ckpt").name
    for name in ("step-00000009.ckpt", "step-00000100.ckpt", part, "other.ckpt"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).touch()
    found = newest(tmp_path)
    assert found is not None and step_of(found) == 100


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


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
    saved |= {"data": {"views": {}, "lanes": 2}, "optim": {"weight_decay": 0.1}}
    new = {"class_path": "InfoNCE", "init_args": {"scale": "logit_scale", "tile": 4}}
    wanted = saved | {"ema": None, "model": {"width": 8, "more": {"a": 1}}, "optim": optim()}
    wanted |= {
        "objective": {"terms": {"a": new}},
        "data": {"views": None, "lanes": 2, "key_field": "k"},
    }
    known = {"objective", "objective.terms", "objective.terms.a", "objective.terms.a.class_path"}
    check_resume(saved, wanted, "a", "a", 0, known)
    for name in ("model.more", "objective.terms.a.init_args.tile", "data.key_field"):
        with pytest.raises(ValueError, match=rf"resume: {name}: None -> [^;]*\. A resumed"):
            check_resume(saved, wanted, "a", "a", 0, known | {name})
    with pytest.raises(ValueError, match=r"model\.more: .*init_args\.tile: .*; data\.key_field: "):
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
        (None, optim(), None),
        (optim(betas=[0.9, 0.98]), optim(betas=[0.9, 0.95], weight_decay=0.1), None),
        (optim(), optim(groups={"image": {"rate": 0.5, "weight_decay": 0.1}}), None),
        (optim(), optim("Lion"), r"optim\.class_path: .*AdamW -> .*Lion"),
        (None, optim("Lion"), r"optim\.class_path: .*AdamW -> .*Lion"),
        (optim(), optim(groups={"frozen": ["a"]}), r"groups\.frozen: None -> \['a'\]\. A resumed"),
        (optim(adamw=["a"]), optim(adamw=["b"]), r"adamw: \['a'\] -> \['b'\]"),
        (optim(nesterov=True), optim(nesterov=False), "nesterov: True -> False"),
    ],
)
def test_numbers_of_an_optimiser_may_change_on_resume(saved, wanted, refused):
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
