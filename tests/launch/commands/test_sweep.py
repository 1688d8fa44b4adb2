"""Sweeps with a stand-in for `fit`: what runs, what is skipped, what is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from waiting import PATIENCE, until

from counterpoint.launch.commands.sweep import main, read_sweep
from counterpoint.launch.config.identity import Identity
from counterpoint.launch.config.packaged import find
from counterpoint.launch.experiments import results, work_claims
from counterpoint.launch.experiments.catalogue.texts import read_catalogue
from counterpoint.launch.experiments.pairs import Runner, fit_command
from counterpoint.launch.experiments.results import read_results
from counterpoint.launch.run import provenance

# Writes the summary that `fit` would write; seed 13 brings bad luck.
STUB = """
import json, pathlib, sys
seed, run_dir, calls = int(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
with calls.open("a") as file:
    file.write(f"{run_dir.name}\\n")
print("a line of output")
if seed == 13:
    sys.exit("the disk is made of cheese")
assert not run_dir.exists(), "left from an interrupted attempt"
run_dir.mkdir(parents=True)
final = {"emoji/heldout_twemoji/top1": 0.25 + seed / 64, "loss": float("nan")}
summary = {"final": final, "steps": 10, "samples": 1280, "seconds": 2.04, "seed": seed}
summary |= {"cpu_seconds_last_process": 1.5, "precision": "32-true"}
(run_dir / "summary.json").write_text(json.dumps(summary))
"""

LONG = pytest.mark.soak


class Bench:
    """A sweep file, folders, and the stand-in that notes each call."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "sweep.yaml"
        self.results = folder / "results"
        self.calls_file = folder / "calls"
        (folder / "stub.py").write_text(STUB)

    def write(self, **runs) -> None:
        self.file.write_text(yaml.safe_dump({"name": "tiny", "runs": runs}, sort_keys=False))

    def command(self, pair, run_dir):
        stub = str(self.folder / "stub.py")
        return [sys.executable, stub, str(pair.seed), str(run_dir), str(self.calls_file)]

    def pairs(self, only=None):
        return read_sweep(
            self.file,
            only,
            lambda config, changes: Identity(
                {"config": config, "changes": len(changes)}, frozenset()
            ),
        )

    def run(self, only=None, limit=None) -> int:
        pairs = self.pairs(only)
        runner = Runner(self.results, self.folder / "runs", limit, command=self.command)
        return runner.run(pairs)

    def calls(self) -> list[str]:
        """The pairs that were run since the last call, without their hashes."""
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        self.calls_file.write_text("")
        return [re.sub(r"(seed\d+)-.*", r"\1", line) for line in text.splitlines()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_result_per_pair_and_no_pair_twice(bench):
    bench.write(clip={"config": "a", "seeds": [0, 1]}, siglip={"config": "b", "seeds": [0]})
    assert bench.run() == 0
    # Every run has a first seed before any has a second.
    assert bench.calls() == ["clip-seed0", "siglip-seed0", "clip-seed1"]
    assert bench.run() == 0
    assert bench.calls() == []
    files = sorted(str(p.relative_to(bench.results)) for p in bench.results.rglob("*.*"))
    assert files == ["tiny/clip-seed0.json", "tiny/clip-seed1.json", "tiny/siglip-seed0.json"]


def test_what_a_result_says(bench, monkeypatch):
    monkeypatch.setattr(provenance, "_processor", lambda: "Abacus 3000")
    bench.write(clip={"config": "a", "seeds": [4], "set": {"phases.train.samples": 1280}})
    bench.run()
    record = json.loads((bench.results / "tiny/clip-seed4.json").read_text())
    keys = "sweep run config seed overrides identity commit machine date"
    spent = "seconds cpu_seconds device world_size samples epochs final"
    assert list(record) == [*keys.split(), *spent.split()]
    assert record["cpu_seconds"] == 1.5
    assert record["overrides"] == {"phases.train.samples": 1280}
    values = {"config": "a", "changes": 1, "trainer.precision": "32-true"}
    assert record["identity"] == {"values": values, "chosen": []}
    assert (record["seconds"], record["samples"], record["seed"]) == (2.0, 1280, 4)
    # Not a number is no JSON; other tools read these files.
    assert record["final"] == {"emoji/heldout_twemoji/top1": 0.3125, "loss": None}
    machine = record["machine"]
    assert set(machine) == {"cpu", "cores", "accelerators", "python", "torch"}
    assert machine["cpu"] == "Abacus 3000"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])


def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=provenance.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = head.stdout.strip() if (provenance.ROOT / ".git").exists() else None
    assert provenance.commit()["revision"] == expected


@pytest.mark.parametrize("change", [{"config": "other"}, {"set": {"data.manifest": "x"}}])
def test_a_changed_configuration_says_so_and_runs_again(bench, capsys, change):
    run = {"config": "a", "seeds": [0], "set": {"data.manifest": "y"}}
    bench.write(clip=run)
    bench.run()
    bench.calls()
    bench.write(clip=run | change)
    assert bench.run() == 0
    assert "configuration has changed" in capsys.readouterr().out
    assert bench.calls() == ["clip-seed0"]
    assert bench.run() == 0
    assert bench.calls() == []


def test_a_failure_is_told_and_stops_nothing(bench, capsys):
    bench.write(clip={"config": "a", "seeds": [13, 14]})
    assert bench.run() == 1
    assert bench.calls() == ["clip-seed13", "clip-seed14"]
    told = capsys.readouterr().err
    assert "clip-seed13: FAILED (exit status 1)" in told
    assert "a line of output" in told
    assert "the disk is made of cheese" in told
    assert [r["seed"] for r in read_results(bench.results)] == [14]
    # A failed pair is tried again, the finished one is not.
    assert bench.run() == 1
    assert bench.calls() == ["clip-seed13"]


def test_an_interrupted_attempt_starts_anew(bench):
    bench.write(clip={"config": "a", "seeds": [0]})
    (pair,) = bench.pairs()
    left = bench.folder / "runs" / "tiny" / f"clip-seed0-{pair.trained.digest[:8]}"
    left.mkdir(parents=True)
    assert bench.run() == 0
    assert (left / "summary.json").is_file()


def test_a_termination_stops_the_run_and_gives_the_claim_back(bench, tmp_path):
    bench.write(clip={"config": "a", "seeds": [0]})
    patient = tmp_path / "patient.py"
    patient.write_text(
        "import pathlib, signal, sys, time\n"
        f"mark = pathlib.Path({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: ((mark / 'stopped').touch(), sys.exit(143)))\n"
        "(mark / 'started').touch()\n"
        "time.sleep(36000)\n"
    )
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\n"
        "from counterpoint.launch.commands import sweep\n"
        "from counterpoint.launch.experiments import pairs\n"
        f"command = lambda *_: [sys.executable, {str(patient)!r}]\n"
        "sweep.Runner = lambda *args, **options: pairs.Runner(*args, **options, command=command)\n"
        "same = sweep.Identity({}, frozenset())\n"
        "sweep.read_sweep.__defaults__ = (None, lambda *_: same)\n"
        f"sweep.main([{str(bench.file)!r}, '--results', {str(bench.results)!r}, "
        f"'--runs', {str(tmp_path / 'runs')!r}])\n"
    )
    with subprocess.Popen([sys.executable, str(driver)]) as process:
        until((tmp_path / "started").exists, lambda: process.poll() is None)
        process.terminate()
        assert process.wait(PATIENCE) == 143
    assert (tmp_path / "stopped").exists()
    assert list((bench.results / "tiny").iterdir()) == []


def test_limit_and_only(bench):
    bench.write(clip={"config": "a", "seeds": [0, 1]}, siglip={"config": "b", "seeds": [0, 1]})
    bench.run(limit=1)
    assert bench.calls() == ["clip-seed0"]
    # The limit counts what runs now, not what has a result already.
    bench.run(limit=1, only="clip")
    assert bench.calls() == ["clip-seed1"]
    bench.run(only="siglip")
    assert bench.calls() == ["siglip-seed0", "siglip-seed1"]
    with pytest.raises(ValueError, match=r"no run flip; it has clip, siglip"):
        bench.pairs(only="flip")


def test_a_pair_that_another_process_works_on_is_left_alone(bench, capsys):
    bench.write(clip={"config": "a", "seeds": [0, 1]})
    claim = bench.results / "tiny" / "clip-seed0.claim"
    with work_claims.claimed(claim) as ours:
        assert ours
        assert bench.run() == 0
    assert bench.calls() == ["clip-seed1"]
    assert "another process" in capsys.readouterr().out
    assert not claim.exists()
    assert bench.run() == 0
    assert bench.calls() == ["clip-seed0"]


def test_the_claim_of_a_dead_process_is_taken_over(bench, monkeypatch):
    bench.write(clip={"config": "a", "seeds": [0]})
    claim = bench.results / "tiny" / "clip-seed0.claim"
    claim.parent.mkdir(parents=True)
    claim.touch()
    bench.run()
    assert bench.calls() == []
    monkeypatch.setattr(work_claims, "STALE_SECONDS", -1.0)
    bench.run()
    assert bench.calls() == ["clip-seed0"]


def test_a_claim_is_touched_while_it_is_held(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr(work_claims, "TOUCH_SECONDS", 0.01)
    path = tmp_path / "pair.claim"
    with work_claims.claimed(path):
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"runs": {}}, "the key name is missing"),
        ({"name": "x", "runs": {}, "seed": 1}, "unknown key seed"),
        ({"name": "x", "runs": {"r": {"config": "a"}}}, "the key seeds is missing"),
        ({"name": "x", "runs": {"r": {"config": "a", "seeds": 3}}}, "such as"),
        ({"name": "x", "runs": {"r": {"config": "a", "seeds": [1, 1]}}}, "such as"),
        ({"name": "x", "runs": {"r": "a"}}, "needs the keys"),
        ({"name": "x", "runs": ["a", "b"]}, r"runs is \['a', 'b'\]; write NAME: {config"),
        ({"name": "x", "runs": {"r": {"config": "a", "seeds": [0], "set": [1]}}}, r"set is \[1\]"),
        (b"runs: {r: [", "sweep.yaml is no YAML .*line 1"),
        (b"name: \xff", "sweep.yaml is no YAML"),
    ],
)
def test_a_sweep_file_that_cannot_be_used_is_refused(bench, content, message):
    if isinstance(content, dict):
        content = yaml.safe_dump(content).encode()
    bench.file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        bench.pairs()


def test_the_command_line_of_a_pair(bench):
    changes = {"phases.train.samples": 40000, "optim.betas": [0.9, 0.95], "name": "x"}
    bench.write(clip={"config": "emoji_clip_short", "seeds": [3], "set": changes})
    (pair,) = bench.pairs()
    command = fit_command(pair, Path("runs/here"))
    assert command == [
        *[sys.executable, "-m", "counterpoint.launch.cli", "fit"],
        *["--config", "emoji_clip_short", "--seed", "3", "--run_dir", "runs/here"],
        *["--phases.train.samples=40000", "--optim.betas=[0.9, 0.95]", "--name=x"],
    ]


def test_a_precision_for_all_machines(bench, monkeypatch):
    """`auto` may differ from one machine to the next, and a table is to have one."""
    bench.write(clip={"config": "emoji_clip_short", "seeds": [0]})
    called = []

    def call(_, command, log, share):
        called.append(command)
        log.touch()
        return 1

    monkeypatch.setattr(Runner, "_call", call)
    folders = ["--results", str(bench.results), "--runs", str(bench.folder / "runs")]
    assert main([str(bench.file), *folders, "--precision", "bf16-mixed"]) == 1
    assert main([str(bench.file), *folders]) == 1
    named, left = called
    assert named == [*left, "--trainer.precision=bf16-mixed"]


def test_the_shipped_sweeps_are_what_the_catalogue_expects():
    methods = read_catalogue(provenance.ROOT / "docs" / "methods").methods
    named = {run: config for method in methods for run, config in method.runs.items()}
    shipped = {}
    for file in sorted((provenance.ROOT / "configs" / "sweep").glob("*.yaml")):
        pairs = read_sweep(
            find(file.stem, "sweep"), identity_of=lambda *_: Identity({}, frozenset())
        )
        assert {pair.sweep for pair in pairs} == {file.stem}
        shipped |= {f"{pair.sweep}/{pair.run}": pair.config for pair in pairs}
    assert shipped == named


@pytest.mark.parametrize(
    "name", ["short", *(pytest.param(name, marks=LONG) for name in ("standard", "catalogue"))]
)
def test_the_shipped_sweeps_can_be_configured(name):
    """The real identity: every run file parses, runs differ."""
    digests = {}
    for pair in read_sweep(find(name, "sweep")):
        digests.setdefault(pair.trained.digest, set()).add((pair.sweep, pair.run))
    for names in digests.values():
        assert len({sweep for sweep, _ in names}) == len(names)  # one of a kind in its sweep


def test_overrides_of_what_is_trained_count():
    plain = results.identity("emoji_clip_short", {})
    assert plain.agrees(plain)
    assert not plain.agrees(results.identity("emoji_clip_short", {"phases.train.samples": 1280}))
    # What a later version adds counts once it is chosen; what only says where and how does not.
    assert {"phases.train.samples", "optim.init_args.weight_decay"} <= plain.values.keys()
    # What a later version adds to parts of these must not count as chosen.
    assert not any(name.startswith("phases.train.rate_") for name in plain.chosen)
    more = {"ema.decay": 0.9, "guard.spikes.patience": 5}
    assert results.identity("emoji_clip_short", more).chosen - plain.chosen == set(more)
    assert "phases.train.samples" in plain.chosen and "data.num_workers" not in plain.values
    with pytest.raises(ValueError, match="nonsense"):
        results.identity("emoji_clip_short", {"model.nonsense": 1})


def test_a_default_that_is_a_tuple_is_not_chosen():
    views = "objective.terms.infonce.init_args.views"
    plain = results.identity("emoji_clip_short", {})
    assert plain.values[views] == ["image", "text"] and views not in plain.chosen
    assert views in results.identity("emoji_clip_short", {views: ["text", "image"]}).chosen


def test_the_command_asks_for_a_file():
    with pytest.raises(ValueError, match="name a sweep FILE, or --render"):
        main([])
