"""A run on a stream: it learns, counts what it leaves out, says what is given up, and goes on."""

import json
from pathlib import Path

from processes import fit
from tiny import config, write_config, write_shards

STEPS = 30


def run_file(folder, urls, steps=STEPS, options=None):
    values = config(Path("none"), steps=steps)
    stream = {"urls": urls, "shuffle": 20}
    data = {"webdataset": stream, "num_workers": 2, "max_error_rate": 0.2, **(options or {})}
    values["run_dir"], values["data"] = str(folder / "run"), data
    folder.mkdir(exist_ok=True)
    return ["--config", str(write_config(folder, values))]


def rows_of(folder):
    return [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]


def test_two_ranks_train_on_uneven_shards_and_go_on(tmp_path):
    """Ranks and workers have shards of unequal size, and one of them a damaged image."""
    paths = [
        path
        for number, size in enumerate((3, 17, 6, 9))
        for path in write_shards(tmp_path / f"{number}", 1, size)
    ]
    content = bytearray(paths[1].read_bytes())
    start = content.index(b"\x89PNG")
    content[start + 60 : start + 90] = bytes(30)
    paths[1].write_bytes(content)
    folder = tmp_path / "a"
    commands = [f"pipe:cat '{path}'" for path in paths]
    argv = run_file(folder, commands, options={"allow_pipe": True})
    text = fit(argv, 2, folder / "log")
    assert text.count("data.webdataset reads 4 shards as they come") == 1
    assert f"({STEPS * 12} pairs)" in text
    rows = rows_of(folder)
    losses = [row["loss"] for row in rows]
    assert len(losses) == STEPS and sum(losses[-5:]) < sum(losses[:5])
    assert rows[-1]["samples"] == STEPS * 12 and "epoch" not in rows[-1]
    assert rows[-1]["errors/bad_image/default"] > 0
    (skipped,) = json.loads((folder / "run" / "skipped.json").read_text())
    assert skipped["cause"] == "bad_image" and str(paths[1]) in skipped["shard"]
    assert json.loads((folder / "run" / "summary.json").read_text())["epochs"] is None

    more = [f"--phases.train.samples={(STEPS + 6) * 12}", "--data.num_workers=1"]
    text = fit(["--resume", str(folder / "run"), *more], 2, folder / "log2")
    assert "a resumed run goes on at its step with a new stream" in text
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 7))
    assert rows[-1]["samples"] == (STEPS + 6) * 12
