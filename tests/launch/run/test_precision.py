"""The precision of a run that leaves it to the machine: what is chosen, by whom, and kept."""

import math
from types import SimpleNamespace

import pytest
import small_run
import torch
import yaml

from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run import precision as choice
from counterpoint.launch.run.precision import choose, settle_precision, slow_bf16
from counterpoint.launch.run.rendezvous import agreed

SLOW, FAST = {"bf16": 12e-3, "fp32": 0.3e-3}, {"bf16": 0.08e-3, "fp32": 0.3e-3}


def processor(monkeypatch, instructions, times=None):
    """A machine without GPU whose processor says this of itself, and needs these times."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in choice.INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions, raising=False)

    def product(a, b):
        assert times is not None, "nothing is timed where the instructions are missing"
        return times["bf16" if a.dtype == torch.bfloat16 else "fp32"]

    monkeypatch.setattr(choice, "product_seconds", product)


def gpus(monkeypatch, **capabilities):
    """A machine with GPUs of these names and compute capabilities."""
    names = list(capabilities)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[names[i]])


@pytest.mark.parametrize(
    ("instructions", "times", "precision", "reason"),
    [
        ((), None, "32-true", "neither AMX nor AVX512-BF16"),
        (choice.INSTRUCTIONS[:1], FAST, "bf16-mixed", "0.08 ms in bf16, 0.3 in fp32"),
        (choice.INSTRUCTIONS[1:], FAST, "bf16-mixed", "0.08 ms in bf16"),
        # Says so, and is told not to use it (ONEDNN_MAX_CPU_ISA), or is emulated.
        (choice.INSTRUCTIONS, SLOW, "32-true", "12 ms in bf16, 0.3 in fp32"),
    ],
)
def test_processors(monkeypatch, capsys, instructions, times, precision, reason):
    processor(monkeypatch, instructions, times)
    for accelerator in ("cpu", "auto"):
        assert choose(accelerator, None) == precision
        assert f"precision: {precision} (auto: " in (line := capsys.readouterr().out)
        assert reason in line and line.count("\n") == 1
    slow = slow_bf16("bf16-mixed", "cpu")
    assert (slow is None) == (precision == "bf16-mixed") and (slow is None or reason in slow)
    assert slow_bf16("32-true", "cpu") is None


def test_a_torch_that_cannot_be_asked_is_measured(monkeypatch):
    processor(monkeypatch, ())
    for name in choice.INSTRUCTIONS:
        monkeypatch.delattr(torch.cpu, name)
    for times, precision in ((FAST, "bf16-mixed"), (SLOW, "32-true")):
        monkeypatch.setattr(
            choice,
            "product_seconds",
            lambda a, b, times=times: times["bf16" if a.dtype == torch.bfloat16 else "fp32"],
        )
        assert choose("cpu", None) == precision


@pytest.mark.parametrize("slow_down", [1, 1000])
def test_few_slow_products_are_timed(monkeypatch, slow_down):
    spent = []

    def product(a, b):
        spent.append(slow_down * FAST["fp32"])
        return spent[-1]

    monkeypatch.setattr(choice, "product_seconds", product)
    before = torch.get_rng_state()
    assert choice.compared(torch.bfloat16, torch.float32) == [spent[0]] * 2
    assert len(spent) == (2 + 2 * choice.ROUNDS if slow_down == 1 else 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("devices", "precision", "reason"),
    [
        ({"H200": (9, 0)}, "bf16-mixed", "H200"),
        ({"A100": (8, 0), "L4": (8, 9)}, "bf16-mixed", "A100"),
        ({"T4": (7, 5)}, "32-true", "T4, compute capability 7.5, has no bf16; 16-mixed is faster"),
        ({"A100": (8, 0), "V100": (7, 0)}, "32-true", "V100"),
    ],
)
def test_gpus(monkeypatch, capsys, devices, precision, reason):
    gpus(monkeypatch, **devices)
    for accelerator in ("gpu", "cuda", "auto"):
        assert choose(accelerator, None) == precision
        assert reason in capsys.readouterr().out
    monkeypatch.setattr(choice, "bf16_on_cpu", lambda: choice.Bf16(False, "the processor's"))
    assert choose("cpu", None) == "32-true"
    assert "the processor's" in capsys.readouterr().out


def test_other_accelerators_are_left_in_fp32(capsys):
    assert choose("tpu", None) == "32-true"
    assert "nothing is known about bf16 with accelerator tpu" in capsys.readouterr().out


@pytest.fixture(scope="module")
def parser():
    return run_config.make_parser()


@pytest.mark.parametrize("trainer", [{}, {"precision": "auto"}])
def test_nobody_names_a_precision(monkeypatch, parser, tmp_path, trainer):
    processor(monkeypatch, choice.INSTRUCTIONS, FAST)
    config = parsed(parser, tmp_path, trainer)
    settle_precision(config.trainer, None)
    assert run_config.plain(parser, config)["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16", None])
def test_a_named_precision_stays(monkeypatch, capsys, parser, tmp_path, precision):
    processor(monkeypatch, ())
    config = parsed(parser, tmp_path, {"precision": precision})
    settle_precision(config.trainer, None)
    assert config.trainer.precision == precision
    said = capsys.readouterr().out
    is_slow = str(precision).startswith("bf")
    assert (f"precision: {precision} is slow here" in said) == is_slow == bool(said)


def parsed(parser, folder, trainer):
    from ...helpers import tiny

    values = tiny.config(folder / "train.parquet")
    del values["trainer"]["precision"]
    values["trainer"] |= trainer
    return run_config.parse(parser, ["--config", str(tiny.write_config(folder, values))])


@pytest.mark.parametrize(
    ("began", "kept"), [("bf16-mixed", "bf16-mixed"), ("32-true", "32-true"), (None, "32-true")]
)
@pytest.mark.parametrize("times", [FAST, SLOW])
def test_a_resumed_run_keeps_its_precision(monkeypatch, capsys, tmp_path, began, kept, times):
    processor(monkeypatch, choice.INSTRUCTIONS, times)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": {"precision": began}}))
    trainer = SimpleNamespace(precision="auto", accelerator="cpu", num_nodes=1)
    settle_precision(trainer, tmp_path)
    assert trainer.precision == kept
    said = capsys.readouterr().out
    assert f"precision: {kept}, as the run began" in said
    assert ("slow" in said) == (kept == "bf16-mixed" and times is SLOW)


def test_a_resumed_run_whose_precision_is_slow_here(monkeypatch, capsys, tmp_path):
    processor(monkeypatch, ())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": {"precision": "bf16-true"}}))
    for named, word in (
        ("bf16-true", "bf16-true, as the run began, is"),
        ("bf16-mixed", "mixed is"),
    ):
        trainer = SimpleNamespace(precision=named, accelerator="cpu", num_nodes=1)
        settle_precision(trainer, tmp_path)
        assert trainer.precision == named
        assert f"{word} slow here" in capsys.readouterr().out


def test_nodes_that_cannot_agree_are_refused(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    trainer = SimpleNamespace(precision="auto", accelerator="cpu", num_nodes=2)
    with pytest.raises(ValueError, match=r"num_nodes=2 without torchrun or srun.*bf16-mixed"):
        settle_precision(trainer, None)


def test_a_process_that_lightning_starts_inherits(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "COUNTERPOINT_WORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert agreed("WORD", lambda: "first") == "first"
    assert agreed("WORD", lambda: "again") == "again"  # another run in the same process
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert agreed("WORD", lambda: "mine") == "again"


def disagreeing(rank, world_size, steps=2):
    """Trains in what rank 0's machine is fast at; the other's is fast at something else."""
    bf16 = choice.Bf16(rank == 0, f"of rank {rank}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "fast_bf16", lambda accelerator: bf16)
        trainer = SimpleNamespace(precision="auto", accelerator="cpu", num_nodes=1)
        settle_precision(trainer, None)
    types = set()
    made = small_run.module(steps)
    layer = made.model.image.trunk.blocks[0].attn.qkv
    layer.register_forward_hook(lambda module, inputs, out: types.add(out.dtype))
    precision = small_run.train(made, world_size, "ddp", precision=trainer.precision).precision
    return precision, types, made.losses


def test_ranks_that_would_choose_differently_train_in_one_precision(gloo):
    results = gloo(2, disagreeing)
    assert [(precision, types) for precision, types, _ in results] == [
        ("bf16-mixed", {torch.bfloat16})
    ] * 2
    assert all(math.isfinite(loss) for _, _, losses in results for loss in losses)
