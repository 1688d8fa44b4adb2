"""`counterpoint init`: runs with their parts, added without overwriting anything; one trains."""

import io
import json
import shlex
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from counterpoint.launch import cli
from counterpoint.launch.commands import init
from counterpoint.launch.config.packaged import CONFIGS, packaged_files


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def named(run):
    """The files that a run file names, each by where it is from there."""
    content = yaml.safe_load(run.read_text())
    slots = [content, *content.get("stages", {}).values()]
    values = [value for tree in slots for value in tree.values()]
    return [run.parent / value for value in values if str(value).endswith(".yaml")]


def commands(printed):
    return [line.strip().split("  #")[0] for line in printed.splitlines() if line[:2] == "  "]


def test_runs_for_photographs_with_what_they_use_and_nothing_else(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path / "mine")]) == 0
    target = tmp_path / "mine" / "configs"
    copied = files(target)
    runs = sorted(path for path in copied if path.parts[0] == "run")
    assert [path.stem for path in runs] == sorted(init.STARTING)
    used = {part.resolve().relative_to(target) for run in runs for part in named(target / run)}
    assert copied == used | set(runs) and len(used) >= 8
    assert not any("emoji" in path.name for path in copied)
    assert all((target / path).read_bytes() == (CONFIGS / path).read_bytes() for path in copied)
    printed = capsys.readouterr().out
    typed = commands(printed)
    assert typed[0] == f"cd {tmp_path / 'mine'}"
    assert "--out train.parquet --holdout 5000" in typed[1]
    assert typed[2] == "counterpoint fit --config configs/run/clip_cpu.yaml"
    listed = printed.split("further runs for photographs: ")[1].split(" (")[0].split(", ")
    assert set(listed) <= set(packaged_files())


@pytest.mark.parametrize("run", packaged_files())
def test_every_run_finds_its_parts_at_its_new_place(tmp_path, run):
    init.copy_configs(tmp_path, init.files_of([run]))
    (copied,) = (tmp_path / "configs" / "run").rglob("*.yaml")
    parts = named(copied)
    assert len(parts) >= 3
    assert all(part.is_file() for part in parts)
    assert f"--config {copied.relative_to(tmp_path)}" in " ".join(
        init.next_commands(tmp_path, [run])
    )


def test_runs_are_added_and_what_is_there_stays(tmp_path, capsys):
    folder = str(tmp_path)
    assert cli.main(["init", folder]) == 0
    mine = tmp_path / "configs" / "objective" / "clip.yaml"
    mine.write_text("mine: true\n")
    before = files(tmp_path)
    capsys.readouterr()
    assert cli.main(["init", folder, "--run", "siglip", "--run", "lit"]) == 0
    printed = capsys.readouterr().out
    assert f"kept {mine}, which differs" in printed and printed.count("kept ") == 1
    assert mine.read_text() == "mine: true\n"
    new = {path.as_posix() for path in files(tmp_path) - before}
    assert {"configs/run/siglip.yaml", "configs/run/lit.yaml"} <= new
    assert "configs/model/lit_b16.yaml" in new and "configs/data/pairs.yaml" not in new
    assert f"wrote {len(new)} files" in printed
    assert cli.main(["init", folder, "--run", "siglip"]) == 0
    assert "wrote 0 files" in capsys.readouterr().out
    assert cli.main(["init", folder, "--all"]) == 0
    everything = {path for path in files(CONFIGS) if path.suffix == ".yaml"}
    assert files(tmp_path / "configs") == everything


def test_the_emoji_are_there_for_those_who_ask(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path), "--run", "emoji_clip"]) == 0
    assert "counterpoint data emoji emoji" in capsys.readouterr().out
    assert "counterpoint data icons icons" in init.next_commands(tmp_path, ["icons_clip"])
    assert {path.name for path in files(tmp_path) if "run" in path.parts} == {"emoji_clip.yaml"}


def test_nothing_is_half_done(tmp_path, capsys):
    with pytest.raises(ValueError, match="did you mean emoji_clip"):
        init.files_of(["clip_cc3m", "emoji_clop"])
    (tmp_path / "file").write_text("")
    (tmp_path / "mine" / "configs" / "run" / "clip_cc3m.yaml").mkdir(parents=True)
    for folder, message in (("file", "is a file"), ("mine", "is a folder")):
        assert cli.main(["init", str(tmp_path / folder)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not files(tmp_path / "mine")


@pytest.fixture
def photographs(tmp_path):
    """Three shards of sixteen crops of photographs; of one image nothing but the head is there."""
    china, flower = load_sample_images().images
    rng = np.random.default_rng(0)
    (tmp_path / "pairs").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "pairs" / f"{shard:05d}.tar", "w") as tar:
            for i in range(16):
                top, left = rng.integers(0, 200), rng.integers(0, 400)
                photo = (china, flower)[i % 2][top : top + 200, left : left + 200]
                out = io.BytesIO()
                Image.fromarray(photo).save(out, "JPEG")
                image = out.getvalue()[:500] if i == 7 else out.getvalue()
                caption = f"{('a temple', 'a flower')[i % 2]}, {top} down and {left} right"
                for name, data in (("jpg", image), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{shard:05d}{i:04d}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tmp_path / "pairs"


def test_a_new_project_trains_and_validates_with_the_commands_it_is_told(
    tmp_path, photographs, capsys, monkeypatch
):
    assert cli.main(["init", str(tmp_path / "project")]) == 0
    index, fit, evaluate, report = [
        shlex.split(line)[1:] for line in commands(capsys.readouterr().out)[1:]
    ]
    monkeypatch.chdir(tmp_path / "project")
    index = [f"{photographs}/*.tar" if "*.tar" in word else word for word in index]
    few = ["--phases.train.samples=24", "--phases.train.batch_size=8", "--data.num_workers=0"]
    few += ["--phases.train.warmup_samples=8", "--data.max_error_rate=0.2"]
    assert cli.main([*fit, *few, "--data.manifest", "absent.parquet"]) == 2
    assert "counterpoint data index" in capsys.readouterr().err
    assert cli.main(index) == 2, "5,000 pairs are more than there are"
    assert cli.main([*index[:-1], "10"]) == 0
    capsys.readouterr()
    assert cli.main([*fit, *few, "--evaluation.every_n_steps=2"]) == 0
    printed = capsys.readouterr().out
    assert "validation: 15 pairs of val.parquet, passed over: 1 bad_image" in printed
    assert "step 2  validation/retrieval/image_to_text_recall@1" in printed
    rows = [
        json.loads(line)
        for line in (tmp_path / "project/runs/clip_cpu/metrics.jsonl").read_text().splitlines()
    ]
    name = "validation/retrieval/text_to_image_recall@10"
    assert [row["step"] for row in rows if name in row] == [2, 3]
    assert cli.main(evaluate) == 0
    assert "validation/retrieval" in capsys.readouterr().out
    assert cli.main(report) == 0
    assert (tmp_path / "project/runs/clip_cpu/report.html").is_file()


def test_a_run_without_its_held_out_shards_says_how_to_make_them(
    tmp_path, photographs, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "index", str(photographs), "--out", "train.parquet"]) == 0
    capsys.readouterr()
    few = ["--phases.train.samples=8", "--phases.train.batch_size=8", "--data.num_workers=0"]
    assert cli.main(["fit", "--config", "clip_cpu", *few, "--phases.train.warmup_samples=0"]) == 2
    message = capsys.readouterr().err
    assert "no val.parquet to validate on" in message and "--evaluation.suite null" in message
    assert message.strip().count("\n") == 0
