"""The mistakes people make, each answered by one sentence with the key, its place, and the fix."""

import re
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.config import messages
from counterpoint.launch.config.diagnosis import Fault, check_class
from counterpoint.launch.config.run_files import Written, read, split
from counterpoint.models.teachers.frozen import Teacher

MAX_LENGTH = 420  # of a sentence, without the paths of the test's own folder
CLI = "(on the command line)"
INFONCE = "counterpoint.losses.infonce.InfoNCE"
IN_RUN, IN_MODEL = "(in run.yaml)", "(in model.yaml)"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with shards, a manifest, and modules of the user's own."""
    folder = tmp_path_factory.mktemp("project")
    shards = tiny.write_shards(folder / "pairs")
    index_shards([str(path) for path in shards], str(folder / "train.parquet"))
    (folder / "my_terms.py").write_text(TERMS)
    (folder / "good" / "checkpoints").mkdir(parents=True)
    (folder / "good" / "config.yaml").write_text(
        yaml.safe_dump(tiny.config(folder / "train.parquet"))
    )
    (folder / "good" / "checkpoints" / "step-00000004.ckpt").touch()
    return folder


TERMS = """
import torch
from torch import nn
from counterpoint.losses.base import Term

class NotATerm(nn.Module):
    def forward(self, features, batch):
        return {"mine": features["image"].sum()}

class ATensor(Term):
    needs = ("image",)
    def forward(self, features, batch):
        return features["image"].sum()
"""


@pytest.fixture
def refused(project, monkeypatch, capsys):
    """Runs the command line in the project; returns the one sentence that it must end in."""
    monkeypatch.chdir(project)
    model = tiny.config(project / "train.parquet")["model"]
    values = tiny.config(Path("train.parquet")) | {"model": "model.yaml"}

    def call(words: str, run: dict | None = None, part: dict | None = None) -> str:
        (project / "run.yaml").write_text(yaml.safe_dump(values | (run or {})))
        (project / "model.yaml").write_text(yaml.safe_dump(model | (part or {})))
        assert main(re.findall(r"\{[^}]*\}|\S+", words)) == 2
        text = capsys.readouterr().err
        assert text.endswith("\n") and text.count("\n") == 1, text
        assert "Traceback" not in text and "Subtypes" not in text
        assert "Problem with given class_path" not in text
        assert len(text.replace(str(project), "")) <= MAX_LENGTH
        return text

    return call


def run(words: str) -> str:
    return f"fit --config run.yaml --run_dir out {words}"


# The mistakes of an audit, as they were typed.
AUDIT = [
    (run("--phases.train.lerning_rate 1e-3"), CLI, "did you mean phases.train.learning_rate?"),
    (run("--phases.train.batch_size abc"), CLI, "batch_size", "'abc'; it takes a whole number"),
    (run("--trainer.devices two"), CLI, "trainer.devices", "'two'; it takes a number of devices"),
    ("fit --config clip_cc3m", "trainer.accelerator", "trainer/gpu.yaml)", "--trainer cpu"),
    (run("--trainer.accelerator gpu"), CLI, "finds no GPU here", "--trainer cpu"),
    (run("--trainer.accelerator mps"), CLI, "trainer.accelerator", "gpu (CUDA) or cpu"),
    (run("--data.manifest nope.parquet"), "nope.parquet"),
    (run("--data.manifest pairs/{00000..00003}.tar"), "counterpoint data index"),
    (run("--evaluation.suite imagenet1k"), "imagenet1k", "imagenet or"),
    ("fit --config emoji_clp", "'emoji_clp'", "did you mean emoji_clip", "--help run lists"),
    (run("--phases.train.batch_size 15 --trainer.devices 2"), "batch_size=15", "use 14 or 16"),
    (run("--trainer.strategy fsdp"), "trainer.strategy", "fsdp2"),
    (run("--trainer.strategy deepspeed_stage_2"), "trainer.strategy", "zero2"),
    (run("--trainer.precision amp_bf16"), CLI, "trainer.precision", "called bf16-mixed here"),
    (
        run("--objective.terms.infonce.class_path counterpoint.losses.infonce.InfoNce"),
        *(CLI, "objective.terms.infonce.class_path", f"did you mean {INFONCE}?"),
    ),
    (run("--trainer.accumulate_grad_batches 4"), "accumulate_grad_batches", "phases.NAME.batch"),
    (run("--trainer.max_steps 3"), CLI, "trainer.max_steps", "is phases.train.samples"),
    (run("--lr 1e-4"), CLI, "lr ", "the learning rate is phases.train.learning_rate"),
    (run("--phases.train.epochs 3"), CLI, "phases.train.epochs", "is phases.train.samples"),
    ("fit", "name a run: --config RUN_FILE", "--config emoji_clip", "counterpoint fit --help"),
    ("train", "unknown command 'train'", "did you mean fit?"),
    ("fit --resume good --model.embed_dim 64", "good"),
    ("fit --resume good/checkpoints/step-00000004.ckpt", "--resume good;", "--init_from good/ch"),
    ("export good out.pt", "out.pt must end in .safetensors"),
    (run("--objective.terms.mine.class_path my_terms.Mine"), CLI, "PYTHONPATH=. counterpoint"),
]
# Further ones.
MORE = [
    (run("--model vit_b3"), CLI, "model", "did you mean vit_b32"),
    (run("--optim lyon"), CLI, "optim", "did you mean lion"),
    (run("--grad_clip zclp"), CLI, "grad_clip", "did you mean zclip"),
    (run("--optim SophiaF"), CLI, "optim", "did you mean counterpoint.train.optim.sophia.SophiaG?"),
    (
        run("--optim counterpoint.train.optim.timm_optimizers.Lion"),
        *(CLI, "optim", "has no class 'Lion'; name timm's optimisers by counterpoint.train."),
    ),
    (run("--optim Lion"), CLI, "optim", "did you mean the packaged lion?"),
    (run("--ema 0.999"), CLI, "ema ", "is ema.decay"),
    (run("--grad_clip 1.0"), CLI, "grad_clip ", "grad_clip.init_args.max_norm"),
    (run("--guard none"), CLI, "guard", "'none' is no file; write its keys below `guard:`"),
    (run("--trainer.logger wandbb"), CLI, "or a list of these (did you mean wandb?)"),
    (run("--data.caption json:title"), CLI, "data.caption", "write it as a list: [json:title]"),
    (run("--phases.warm.samples 9"), CLI, "phases.warm.samples", "no phase warm, it has train"),
    (run("--trainer.precision fp32"), CLI, "trainer.precision", "called 32-true here"),
    (run("--precision bf16-mixed"), CLI, "precision ", "the precision is trainer.precision"),
    (run("--batch_size 64"), CLI, "batch_size ", "is phases.train.batch_size"),
    (run("--warmup 10000"), CLI, "warmup ", "is phases.train.warmup_samples"),
    (run("--phases.train.warmup_steps 100"), CLI, "is phases.train.warmup_samples"),
    (run("--clip zclip"), CLI, "clip ", "gradients are clipped by grad_clip: norm, value, zclip"),
    (run("--trainer.gradient_clip_val 1"), CLI, "trainer.gradient_clip_val ", "by grad_clip: norm"),
    (run("--grad_clip_norm 1.0"), CLI, "grad_clip_norm ", "clipped by grad_clip: norm"),
    (run("--data.keep [x.parquet]"), CLI, "data.keep ", "did you mean data.keep_lists"),
    (run("--train-data pairs.tar"), CLI, "train-data ", "data.manifest", "data index"),
    (run("--workers 8"), CLI, "workers ", "are data.num_workers"),
    (run("--report_to wandb"), CLI, "report_to ", "are trainer.logger"),
    (run("--nproc_per_node 8"), CLI, "trainer.devices", "torchrun"),
    (run("--accum_freq 8"), CLI, "accum_freq ", "model.chunks"),
    (run("--run-dir x"), CLI, "run-dir ", "did you mean run_dir?"),
    (run("--seed x"), CLI, "seed ", "'x'; it takes a whole number"),
    (run("--resume"), "--resume needs a value", "runs/NAME", "auto"),
    ("fit --resume nowhere", "--resume nowhere", "there is no run"),
    (run("emoji"), "'emoji' belongs to no option", "--KEY VALUE"),
    (run("--data.manifest"), CLI, "data.manifest", "needs a value"),
    ("fit --config", "--config needs a value", "--config emoji_clip"),
    ("fit --data.manifest train.parquet", "model.image", "name --config RUN_FILE"),
    (run("--model.image.nmae x"), CLI, "did you mean model.image.init_args.name?"),
    (run("--model.logit_scale_init 3"), CLI, "is set by objective.logit_scale_init"),
    (run("--phases.train.schedule cosin"), CLI, "cosine, constant, rsqrt (did you mean cosine?)"),
    (run("--phases.train.image_reducer RandomPatch"), CLI, "reducers.patches.RandomPatches?"),
    (run("--optim.weight_decay much"), CLI, "optim.weight_decay", "'much'; it takes a number"),
    (run("--ema.decays 0.9"), CLI, "ema.decays", "did you mean ema.decay?"),
    (run("--trainer.callbacks EarlyStopping"), CLI, "trainer.callbacks", "monitor", "is missing"),
    (run("--trainer.callbacks EarlyStop"), CLI, "early_stopping.EarlyStopping?"),
    (run("--trainer.devices 0"), CLI, "trainer.devices", "1 or more"),
    (run("--trainer.peak_tflops -3"), CLI, "trainer.peak_tflops", "a number above 0"),
    (
        run("--objective.terms.i torch.nn.Linear"),
        CLI,
        "objective.terms.i",
        "derived from counterpoint.losses.base.Term",
    ),
    ("fit --config my_terms.py", "my_terms.py"),
    ("launch slurm --config run.yaml --lr 3", "lr ", "is phases.train.learning_rate"),
    ("embed --config run.yaml --teacher t --out o --lr 3", "lr ", "is phases.train.learning"),
    ("evaluate good --sute emoji", "'--sute'", "did you mean --suite?"),
]


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without GPU, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("row", AUDIT + MORE, ids=lambda row: row[0])
def test_a_mistake_on_the_command_line(refused, no_gpu, row):
    words, *parts = row
    text = refused(words)
    assert [part for part in parts if part not in text] == [], text


TERM = {"class_path": INFONCE}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"optimizer": {}}, ["optimizer ", IN_RUN, "the optimizer's slot is optim"]),
        ({"phase": {}}, ["phase ", IN_RUN, "phases are named in `phases`"]),
        ({"batch_size": 3}, ["batch_size ", IN_RUN, "is phases.train.batch_size"]),
        ({"losses": {}}, ["losses ", IN_RUN, "slot is objective"]),
        ({"seed": "one"}, ["seed ", IN_RUN, "'one'; it takes a whole number"]),
        ({"model": "vit_b3"}, ["model ", IN_RUN, "did you mean vit_b32"]),
        ({"optim": "lyon"}, ["optim ", IN_RUN, "did you mean lion"]),
        ({"trainer": {"max_epochs": 3}}, ["trainer.max_epochs", IN_RUN, "phases.train.samples"]),
        ({"trainer": {"devises": 2}}, [IN_RUN, "did you mean trainer.devices?"]),
        ({"trainer": 3}, ["trainer ", IN_RUN, "is '3'; write its keys below `trainer:`"]),
        ({"phases": {"a": {"samples": 1}}}, ["phases.a.batch_size", IN_RUN, "is missing"]),
        ({"phases": None}, ["phases", "is missing: phases: {train: "]),
        ({"phases": [1]}, ["phases", IN_RUN, "write its keys below `phases:`"]),
        ({"objective": {"terms": {"a": "InfoNse"}}}, [IN_RUN, f"did you mean {INFONCE}?"]),
        ({"objective": {"terms": {"a": {}}}}, ["objective.terms.a", "names no class"]),
        (
            {"objective": {"terms": {"a": TERM | {"init_args": {"tilebytes": 3}}}}},
            [IN_RUN, "did you mean objective.terms.a.init_args.tile_bytes?"],
        ),
        (
            {"objective": {"terms": {"a": TERM | {"tile_bytes": 3}}}},
            ["objective.terms.a.tile_bytes", IN_RUN, "write it below init_args"],
        ),
        ({"objective": {"terms": {"a": {"class_path": "nopackage.X"}}}}, ["put the folder that"]),
        ({"objective": {"terms": {"a": {"class_path": "my_terms.Mine"}}}}, ["PYTHONPATH=. "]),
        ({"grad_clip": {"max_norm": 1}}, ["grad_clip ", IN_RUN, "names no class", "Norm"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_mistake_in_a_run_file(refused, changes, parts):
    text = refused(run(""), run=changes)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"embed_dims": 32}, [IN_MODEL, "model.embed_dims", "did you mean model.embed_dim?"]),
        ({"embed_dim": "wide"}, [IN_MODEL, "model.embed_dim", "'wide'; it takes a whole number"]),
        ({"image": None}, ["model.image", "is missing"]),
        ({"image": {"class_path": "TimTower"}}, [IN_MODEL, "counterpoint.models.image.TimmTower?"]),
        ({"text": {"class_path": "TimmTower"}}, [IN_MODEL, "model.text", "TextTower?"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_mistake_in_a_slots_file(refused, changes, parts):
    text = refused(run(""), part=changes)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("NotATerm", ["objective.terms.mine", "not derived from counterpoint.losses.base.Term"]),
        ("ATensor", ["objective.terms.mine", "returns a Tensor", "a dict of named scalars"]),
    ],
)
def test_a_term_of_ones_own(refused, project, monkeypatch, name, parts):
    monkeypatch.syspath_prepend(str(project))
    text = refused(run(f"--objective.terms.mine.class_path my_terms.{name}"))
    sys.modules.pop("my_terms")
    assert [part for part in parts if part not in text] == [], text


def test_a_short_name_that_the_parser_refuses_is_given_whole():
    value = {"class_path": "OpenClip", "init_args": {"source": "x"}}
    with pytest.raises(Fault, match="write its whole name"):
        check_class([Teacher], value, "teachers.a")


def test_a_class_below_a_name_of_ones_own_is_written_by_keys(tmp_path):
    (tmp_path / "run.yaml").write_text("name: a")
    start = f"--config {tmp_path / 'run.yaml'} --run_dir out"
    own = {
        "class_path": "counterpoint.models.teachers.foreign.OpenClip",
        "init_args": {"source": "x"},
    }
    by_keys = (
        "--teachers.a.class_path counterpoint.models.teachers.foreign.OpenClip "
        "--teachers.a.source x"
    )
    assert read(f"{start} {by_keys}".split()).whole()["teachers"] == {"a": own}
    words = read(f"{start} {by_keys}".split()).words()
    assert yaml.safe_load(words[1])["teachers"] == {"a": own} and "--run_dir=out" in words
    other = "--objective.terms.infonce.class_path counterpoint.losses.siglip.SigLIP"
    tree = {"objective": {"terms": {"infonce": TERM | {"init_args": {"views": ["image"]}}}}}
    changed = yaml.safe_load(Written(tree, [*split([*other.split()])]).words()[1])
    assert list(changed["objective"]["terms"]["infonce"]) == ["class_path"]


def test_a_module_that_a_saved_run_needs():
    prose = "Parser key \"objective.terms\": Problem with given class_path 'mine.X': "
    text = messages.shortened(f"{prose}No module named 'mine'")
    assert text.startswith("objective.terms: there is no module 'mine': put the folder that holds")


def test_a_file_that_is_no_yaml(refused, project):
    (project / "broken.yaml").write_text("a: [1,\nb: }")
    assert "broken.yaml is no YAML" in refused("fit --config broken.yaml")
    (project / "list.yaml").write_text("- 1\n")
    assert "list.yaml holds no keys" in refused("fit --config list.yaml")


def test_one_process_of_a_node_prints_what_all_of_them_meet(refused, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "lr " in refused(run("--lr 3"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(run("--lr 3").split()) == 2
    assert capsys.readouterr().err == ""
