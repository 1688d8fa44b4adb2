"""Runs over several streams: the same losses on any number of processes, under every strategy."""

import json

import pytest
import yaml
from processes import fit
from tiny import SENTENCES, TEXT_PAIRS, config, write_shards, write_texts

from counterpoint.launch.cli import main

STEPS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Indexed on the command line, as users do."""
    folder = tmp_path_factory.mktemp("streams")
    write_shards(folder / "pairs")
    write_texts(folder / "texts")
    index = ["data", "index"]
    assert main([*index, str(folder / "pairs"), "--out", str(folder / "pairs.parquet")]) == 0
    texts = ["--out", str(folder / "texts.parquet"), "--caption", "json:anchor", "--texts"]
    assert main([*index, str(folder / "texts"), *texts]) == 0
    return folder


def run_file(folder, out, strategy, turns):
    out.mkdir()
    run = config(folder / "pairs.parquet", steps=STEPS)
    stream = {"manifest": str(folder / "texts.parquet"), "batch_size": 6, **SENTENCES}
    run["data"] |= {"streams": {"sentences": stream}, "turns": turns}
    run["objective"]["terms"]["sentences"] = TEXT_PAIRS
    run["objective"]["streams"] = {"sentences": "sentences"}
    run["trainer"] |= {"strategy": strategy}
    del run["model"]["text"]["init_args"]["dropout"]
    for name in ("proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        del run["model"]["image"]["init_args"]["model_args"][name]
    (out / "run.yaml").write_text(yaml.safe_dump(run))
    return ["--config", str(out / "run.yaml"), "--run_dir", str(out / "run")]


def rows(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k.split("/")[0] in ("loss", "grad_norm")}
        for line in lines
    ]


@pytest.mark.soak
@pytest.mark.parametrize("turns", [None, {"main": 2, "sentences": 1}])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_two_processes_train_as_one(tmp_path, folder, strategy, turns):
    fit(run_file(folder, tmp_path / "one", "auto", turns), 1, tmp_path / "log1")
    fit(run_file(folder, tmp_path / "two", strategy, turns), 2, tmp_path / "log2")
    one, two = rows(tmp_path / "one/run"), rows(tmp_path / "two/run")
    assert len(one) == STEPS
    for step, (want, got) in enumerate(zip(one, two, strict=True)):
        names = {"loss", "loss/infonce", "loss/sentences", "grad_norm"}
        if turns:
            names -= {"loss/infonce"} if step % 3 == 2 else {"loss/sentences"}
        assert want.keys() == got.keys() == names
        assert got == pytest.approx(want, rel=2e-3)


def test_mistakes_are_sentences(tmp_path, folder, capsys):
    arguments = run_file(folder, tmp_path / "run", "auto", {"main": 1, "sentences": 1})

    def refused(message, *options):
        assert main(["fit", *arguments, *options]) == 2
        assert message in capsys.readouterr().err

    refused("no row of the log would have the losses of 'main'", "--trainer.log_every_n_steps=2")
    ranks = ["--trainer.devices=4", "--trainer.strategy=ddp"]
    refused("data.streams.sentences.batch_size=6 (the global batch) does not divide", *ranks)
    refused("guard.spikes compares the losses", "--guard.spikes.z=6")
    refused("no term reads data.streams.sentences", "--objective.streams={}")
    refused("which are no terms", "--objective.streams.others=sentences")
    refused(
        "a term of the stream sentences needs 'text.positive'", "--data.streams.sentences.texts={}"
    )
