"""`counterpoint plan`: the page, its numbers, its warnings, and what it refuses."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
import yaml

from counterpoint.data.workers import MOST
from counterpoint.launch.cli import main
from counterpoint.launch.planning import devices
from counterpoint.launch.planning.advice import ROOM, advice
from counterpoint.launch.planning.devices import load_device
from counterpoint.launch.planning.estimate import Cluster, estimate, fed_seconds
from counterpoint.launch.planning.page import lines, values
from counterpoint.launch.run.load import build_slots

GIB = 2.0**30


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A resolved configuration: the run's data need not exist."""
    from counterpoint.launch.config import parser as run_config

    folder = tmp_path_factory.mktemp("plan")
    values = tiny.config(folder / "none.parquet") | {"ema": {}}
    values["phases"]["tuning"] = {"samples": 480, "batch_size": 24, "learning_rate": 1e-3}
    file = tiny.write_config(folder, values)
    parser = run_config.make_parser()
    return run_config.plain(parser, run_config.parse(parser, [str(file)]))


@pytest.fixture
def run_file(config, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return str(path)


def planned(config, count=2, device="h100", **trainer):
    changed = {**config, "trainer": {**config["trainer"], **trainer}}
    cluster = Cluster(load_device(device), count, -(-count // 8))
    return estimate(changed, cluster), changed, cluster


def test_memory_is_that_of_the_real_tensors(config):
    model = build_slots(config, "here").model
    size = 4 * sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [x for s in optimizer.state.values() for x in s.values()]
    states = sum(x.numel() * x.element_size() for x in states)
    found, *_ = planned(config)
    assert found.parameters == {"total": size // 4, "trainable": size // 4}
    memory = found.phases[0].memory
    assert memory["weights"] == memory["average"] == memory["gradients"] == size
    assert memory["optimizer"] == states
    assert found.checkpoint_bytes == 2 * size + states
    batch = found.phases[0].rows * (3 * 16 * 16 + 8 * 8 + 2 * 8)  # pixels, ids, lengths and keys
    assert memory["batch"] == batch


def test_a_copy_on_each_node_is_cut_over_its_devices_and_sends_less_between_nodes(config):
    cluster = Cluster(load_device("h100"), 4, 2)
    one, two = (
        estimate({**config, "trainer": {**config["trainer"], "strategy": name}}, cluster).phases[0]
        for name in ("fsdp2", "hsdp")
    )
    assert two.memory["optimizer"] == 2 * one.memory["optimizer"]
    across = [c for c in two.collectives if c.ranks and not c.stays_in_node]
    inside = {c.kind: c.bytes for c in two.collectives if c.stays_in_node}
    assert [(c.kind, c.ranks) for c in across] == [("all-reduce", 2)]
    assert across[0].bytes == inside["reduce-scatter"] / 2 and inside.keys() >= {"all-gather"}


def test_distributed_checkpoints_are_waited_for_until_they_are_copied(config):
    one, *_ = planned(config)
    split = {**config, "checkpoint": {**config["checkpoint"], "format": "distributed"}}
    many, _, cluster = planned(split)
    assert many.checkpoint_bytes == one.checkpoint_bytes
    wanted = one.checkpoint_bytes / 2 / (cluster.device.host * 1e9)
    assert many.checkpoint_seconds == pytest.approx(wanted)
    assert many.seconds < one.seconds


@pytest.mark.parametrize("strategy", ["fsdp2", "zero1", "zero2", "zero3"])
def test_strategies_cut_up_what_they_say(config, strategy):
    whole, cut = (planned(config, 4, strategy=s)[0].phases[0].memory for s in ("ddp", strategy))
    assert cut["optimizer"] == whole["optimizer"] / 4
    assert (cut["weights"] == whole["weights"]) == (strategy in ("zero1", "zero2"))
    assert cut["activations"] == pytest.approx(whole["activations"], rel=0.01)


def test_phases_have_their_own_steps_and_add_up(config):
    found, *_ = planned(config)
    first, second = found.phases
    assert (first.rows, second.rows, first.steps, second.steps) == (6, 12, 40, 20)
    assert second.count.flops == pytest.approx(2 * first.count.flops, rel=0.01)
    saves = 60 / config["checkpoint"]["every_n_steps"] * found.checkpoint_seconds
    assert found.seconds == pytest.approx(40 * first.step + 20 * second.step + saves)


def test_a_run_that_does_not_fit_is_told_which_key_to_turn(config):
    found, changed, cluster = planned(config)
    memory = found.phases[1].memory
    fixed = sum(memory.values()) - memory["activations"]

    def sentences(room):
        small = {**vars(cluster.device), "memory": room / GIB}
        return advice(found, changed, Cluster(devices.Device(**small), 2, 1))

    assert not [s for s in sentences(1e12) if "fit" in s]
    room = (fixed + memory["activations"] / 3) / ROOM
    *_, chunks = [s for s in sentences(room) if "not fit" in s]
    assert chunks.startswith("phases.tuning: it does not fit") and "set model.chunks to 4" in chunks
    assert any("trainer.strategy: fsdp2" in s for s in sentences(0.5 * fixed))
    changed["trainer"]["strategy"] = "fsdp2"
    assert any("take more devices, or a smaller" in s for s in sentences(0.5 * fixed))


def test_what_will_be_waited_for_is_said(config):
    found, changed, cluster = planned(config, 12)
    slow = replace(found, images_per_core=found.phases[1].rows / found.phases[1].step / 1.5)
    loader = [s for s in advice(slow, changed, cluster) if "data.num_workers is 1" in s]
    assert "needs 2 cores a device" in loader[-1] and "50% of the speed" in loader[-1]
    saving = found.seconds - sum(phase.steps * phase.step for phase in found.phases)
    fed = [max(p.step, p.rows / slow.images_per_core) * p.steps for p in found.phases]
    assert found.seconds < fed_seconds(slow, 1) == pytest.approx(sum(fed) + saving)
    assert fed_seconds(slow, 2) == found.seconds
    sentences = " ".join(advice(found, changed, cluster))
    assert "the host cannot launch" in sentences and "trainer.compile" in sentences
    assert "checkpoint.every_n_steps" in sentences
    changed["trainer"]["compile"] = "inductor"
    assert "trainer.compile" not in " ".join(advice(found, changed, cluster))


@pytest.mark.parametrize(("workers", "number"), [("auto", MOST), (3, 3)])
def test_hours_are_those_with_the_runs_own_workers(config, workers, number):
    found, changed, cluster = planned(
        {**config, "data": {**config["data"], "num_workers": workers}}
    )
    slow = replace(found, images_per_core=found.phases[0].rows / found.phases[0].step / 2 / number)
    plan = values(changed, slow, cluster, [], {"device": "h100", "precision": "32-true"}, None)
    assert plan["num_workers"] == number and plan["fed_hours"] > 1.3 * plan["hours"]
    assert any(f"with data.num_workers {number}, if" in line for line in lines(plan))


def test_the_page_and_its_numbers(run_file, tmp_path, capsys):
    file = tmp_path / "plan.json"
    words = ["plan", run_file, "--gpus", "4", "--on", "h100", "--price", "2", "--json", str(file)]
    assert main(words) == 0
    text, values = capsys.readouterr().out, json.loads(file.read_text())
    assert "tiny on 4 x h100 (1 nodes), auto, 32-true: computed, not measured" in text
    for word in ("compute", "memory", "network", "step", "loader", "saves", "run", "assumed"):
        assert f"\n  {word}" in text or f"\n{word}" in text, word
    assert values["gpu_hours"] == 4 * values["hours"] and values["cost"] == 2 * values["gpu_hours"]
    (phase, _) = values["phases"]
    assert phase["pairs_per_second"] == pytest.approx(12 / phase["step_seconds"])
    assert sum(phase["seconds"].values()) == pytest.approx(phase["step_seconds"])
    assert values["fed_hours"] >= values["hours"] and values["num_workers"] == 1
    assert 0 < phase["mfu"] < 1 and phase["cores"] >= 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name the device with --on"),
        (["--on", "h1000"], "'h1000' is neither a file nor a packaged device: did you mean h100"),
        (["--on", "h100", "--gpus", "5"], "phases.train.batch_size"),
        (["--on", "h100", "--gpus", "0"], "--gpus is 0; give more than 0"),
        (["--on", "h100", "--gpus", "6", "--nodes", "4"], "does not divide into --nodes 4"),
        (["--on", "h100", "--modle.chunks", "2"], "model"),
        (["--measure", "x.yaml"], "takes no run"),
    ],
)
def test_refusals_are_one_sentence(run_file, words, sentence, capsys):
    assert main(["plan", run_file, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_less_than_an_hour_is_said_in_minutes(config):
    estimated, changed, cluster = planned(config)
    named = {"device": "h100", "precision": "32-true"}
    for hours, said in (
        (0.5, "run         30.0 minutes"),
        (1.25, "run         1.2 hours, 5 GPU hours"),
    ):
        plan = values(changed, estimated, cluster, [], named, None)
        plan |= {"hours": hours, "gpu_hours": 4 * hours, "fed_hours": hours}
        assert said in lines(plan)


def test_files_of_devices(tmp_path):
    for name in ("a100", "h100", "h200", "b200", "cpu"):
        device = load_device(name)
        assert 0 < device.flops("fp32") <= device.tflops["fp32"] * 1e12
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**vars(load_device("h100")), "colour": "green"}))
    with pytest.raises(ValueError, match="has the unknown key colour"):
        load_device(str(path))
    path.write_text("kind: cuda\n")
    with pytest.raises(ValueError, match="lacks"):
        load_device(str(path))


def test_gradients_travel_behind_the_backward_pass_but_for_the_last_twentieth(config):
    values = {**config, "trainer": {**config["trainer"], "strategy": "ddp"}}
    slow = replace(load_device("h100"), network=1e-3)  # so slow that something is left to wait for
    (phase, *_) = estimate(values, Cluster(slow, 4, 2)).phases
    sent = sum(c.seconds(4, slow, False) for c in phase.collectives if c.purpose == "gradients")
    behind = 0.95 * phase.count.backward_seconds
    assert phase.seconds["gradients"] == pytest.approx(sent - behind) and sent > 2 * behind > 0


def test_a_processor_computes_after_the_host_and_a_gpu_beside_it(config):
    """A view is an operation of the host, and launches nothing."""

    def step(kind, launch):
        device = load_device("cpu")
        device = replace(device, kind=kind, microseconds={**device.microseconds, "launch": launch})
        return estimate(config, Cluster(device, 1, 1)).phases[0]

    free, slow = step("cpu", 0), step("cpu", 1000)
    assert free.count.operations > 1.5 * free.count.launches > 0
    assert slow.step - free.step == pytest.approx(1e-3 * free.count.operations)
    work, launches = step("cuda", 0).step, step("cuda", 1000).count.launches
    assert step("cuda", 1000).step == pytest.approx(max(work, 1e-3 * launches))


def test_the_machine_is_measured_into_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "SECONDS", 0.02)
    path = tmp_path / "here" / "mine.yaml"
    assert main(["plan", "--measure", str(path)]) == 0
    device = load_device(str(path))
    assert device.kind in ("cpu", "cuda")
    assert device.memory > 0.5 and device.bandwidth > 0.1 and device.tflops["fp32"] > 1e-4
    assert device.microseconds["launch"] > 0.01 and device.attained["attention"] > 1e-4
