"""Ablations: a real one in small, restarts, shared work, job arrays, mistakes in the file."""

import json
import subprocess
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import fake_slurm
import pyarrow.parquet as pq
import pytest
import tiny_ablation
from fake_runs import Page
from finished_run import leave

from counterpoint.launch import cli
from counterpoint.launch.commands.ablate import keep_outcomes, main, make_runner
from counterpoint.launch.config.curations import load_curation
from counterpoint.launch.config.identity import Identity
from counterpoint.launch.config.packaged import packaged_files
from counterpoint.launch.experiments import pairs, results
from counterpoint.launch.experiments.ablation import plan

ROOT = Path(__file__).resolve().parents[3]


class Here:
    """Runs at once, in this process and thread, what a pool of threads would."""

    def __init__(self, jobs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


class Fit:
    """`counterpoint fit` in this process, where everything is imported already."""

    def __init__(self, command, **options):
        assert command[1:4] == ["-m", "counterpoint.launch.cli", "fit"]
        self.status = cli.main(command[3:])

    def wait(self, timeout=None):
        return self.status


class Finished:
    """In the place of `fit`: notes the run in the file `calls` and leaves what a run does."""

    def __init__(self, command, **options):
        calls, run_dir = command
        with open(calls, "a") as file:
            file.write(run_dir + "\n")
        leave(Path(run_dir))

    def wait(self, timeout=None):
        return 0


@cache
def parsed_text(config, overrides):
    return results.parsed(config, json.loads(overrides))


def parsed_once(config, overrides):
    return parsed_text(config, json.dumps(overrides))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    tiny_ablation.write_pool(folder)
    return folder


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Replaces `fit`; returns the function that tells which runs there were since the last call."""
    calls = tmp_path / "calls"
    calls.touch()
    # Parsing a run file takes a second where many tests run at a time.
    monkeypatch.setattr(plan, "parsed", parsed_once)
    monkeypatch.setattr(plan, "identity", lambda config, values: Identity(values, frozenset()))

    def command(pair, run_dir):
        return [str(calls), str(run_dir)]

    monkeypatch.setattr("counterpoint.launch.commands.ablate.resumed_command", command)
    in_process = SimpleNamespace(Popen=Finished, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(pairs, "subprocess", in_process)

    def said():
        names = [Path(line).name.rpartition("-")[0] for line in calls.read_text().splitlines()]
        calls.write_text("")
        return names

    return said


def test_a_real_ablation(pool, tmp_path, monkeypatch):
    in_process = SimpleNamespace(Popen=Fit, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(pairs, "subprocess", in_process)
    monkeypatch.setattr(pairs, "ThreadPoolExecutor", Here)
    file, out = tiny_ablation.write(pool), tmp_path / "out"
    assert main([str(file), "--out", str(out)]) == 0
    table = json.loads((out / "table.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    sizes = {"pool": 51, "some": 24, "fewer": 12, "random_12": 12, "random_24": 24}
    assert {name: row["size"] for name, row in rows.items()} == sizes
    assert table["missing"] == 0 and table["metrics"] == ["suite/colours/top1"]
    # The trainer's own count of epochs: 24 samples of 24, of 12, of 51.
    epochs = [rows[name]["epochs"] for name in ("some", "fewer", "pool")]
    assert epochs == pytest.approx([1, 2, 24 / 51], abs=1e-4)
    for name in rows:
        run_dir = next((out / "runs" / "tiny").glob(f"{name}-seed0-*/"))
        stated = json.loads((run_dir / "summary.json").read_text())
        value = stated["final"]["suite/colours/top1"]
        assert rows[name]["evaluations"]["suite/colours/top1"]["mean"] == value
        record = json.loads((out / "results" / "tiny" / f"{name}-seed0.json").read_text())
        assert record["history"]["samples"] == [24]  # 12 a batch, every second step
    assert table["overlap"]["some"]["fewer"] == {"jaccard": 0.5, "share": 0.5}
    page = Page((out / "table.html").read_text())
    assert "http" not in page.text and "Ablation tiny" in page.said
    assert "| random_12 | 12 |" in (out / "table.md").read_text()


def test_a_run_is_not_repeated_unless_its_subset_has_changed(pool, tmp_path, stub, capsys):
    for name in ("some", "fewer"):
        (tmp_path / f"{name}.parquet").write_bytes((pool / f"{name}.parquet").read_bytes())
    chosen = {n: {"keep_list": str(tmp_path / f"{n}.parquet")} for n in ("some", "fewer")}
    file = tiny_ablation.write(pool, seeds=[3, 1], curations=chosen)
    argv = [str(file), "--out", str(tmp_path / "out")]
    assert main([*argv, "--limit", "1"]) == 0
    assert stub() == ["pool-seed3"]
    assert main([*argv, "--only", "some"]) == 0
    assert stub() == ["some-seed3", "some-seed1"]
    assert main(argv) == 0
    rest = ["fewer-seed3", "random_12-seed3", "random_24-seed3"]  # seeds vary slowest
    assert stub() == [*rest, "pool-seed1", "fewer-seed1", "random_12-seed1", "random_24-seed1"]
    capsys.readouterr()
    assert main(argv) == 0
    assert stub() == [] and capsys.readouterr().out.count("has a result") == 10
    # The same file name, the same number, other samples.
    tiny_ablation.write_keep_list(tmp_path / "fewer.parquet", [(2, i) for i in range(12)])
    assert main(argv) == 0
    assert stub() == ["fewer-seed3", "fewer-seed1"]
    # A random subset is another one for each seed, and of the same size.
    lists = [pq.read_table(p) for p in (tmp_path / "out" / "subsets").glob("random_12-*.parquet")]
    assert [len(table) for table in lists] == [12, 12] and not lists[0].equals(lists[1])


def test_two_jobs_do_everything_once_and_the_table_tells_better_from_worse(pool, tmp_path, stub):
    file = tiny_ablation.write(
        pool,
        seeds=[0, 1, 2],
        evaluate={"in_distribution": "colours/top1", "shift": "colours_shift/top1"},
    )
    assert main([str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]) == 0
    calls = stub()
    assert len(calls) == 15 == len(set(calls))
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    found = {row["run"]: row for row in table["comparisons"]["suite/colours/top1"][:2]}
    assert found["some"]["against"] == "random_24" and found["some"]["num_items"] == 400
    assert found["some"]["p_holm"] < 0.001 < 0.05 < found["fewer"]["p_holm"]
    assert found["some"]["t"][0] > 0.15 and found["some"]["bootstrap"][0] > 0.15
    assert {row["run"] for row in table["robustness"]["rows"]} > {"pool", "some", "random_12"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert f"| some | random_24 | **+{100 * found['some']['value']:.1f}** |" in text


def test_runs_are_resumed(pool, tmp_path):
    made = plan.read_plan(tiny_ablation.write(pool), tmp_path)
    command = make_runner(tmp_path).command(made.pairs[1], Path("here"))
    assert command[4:] == [
        *["--config", str(pool / "run.yaml"), "--seed", "0", "--run_dir", "here"],
        "--phases.train.samples=24",
        f'--data.keep_lists=["{pool}/some.parquet"]',
        *["--resume", "auto"],
    ]


def test_a_job_array(pool, tmp_path, monkeypatch, stub, capsys):
    """The script, and what it runs under a SLURM that is played."""
    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    # In the place of the command: what it is called with.
    show = tmp_path / "slurm" / "counterpoint"
    # The first start is stopped before its time is up, as `ablate` then ends.
    show.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/words\n'
        '[ -z "$SLURM_RESTART_COUNT" ] && exit 138\nexit 0\n'
    )
    out = tmp_path / "out"
    argv = [str(tiny_ablation.write(pool)), "--out", str(out), "--slurm", "--jobs", "2"]
    argv += ["--gpus=0", "--cpus=3", "--time=1:00:00", "--sbatch=--qos=high", "--setup=module x"]
    assert main(argv) == 0
    script = out / "ablation.sbatch"
    lines = script.read_text().splitlines()
    given = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert given == {
        *("--job-name=tiny", "--array=0-4%2", "--nodes=1", "--ntasks-per-node=1"),
        *("--cpus-per-task=3", "--time=1:00:00", "--qos=high", "--requeue"),
        *(f"--output={out}/slurm-%A_%a.log", "--open-mode=append", "--signal=USR1@180"),
    }
    assert "module x" in lines and "@{" not in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "slurm"))
    (tmp_path / "slurm" / "module").write_text("#!/bin/sh\n")
    (tmp_path / "slurm" / "module").chmod(0o755)
    assert main([*argv, "--submit"]) == 0
    assert "Submitted batch job" in capsys.readouterr().out
    words = (tmp_path / "words").read_text().splitlines()
    command = f"ablate {pool}/ablation.yaml --out {out} --only_task"
    assert words == [f"{command} {task}" for task in range(5) for start in range(2)]


def test_a_task_runs_its_pair_and_the_last_one_writes_the_table(pool, tmp_path, stub):
    argv = [str(tiny_ablation.write(pool)), "--out", str(tmp_path / "out"), "--only_task"]
    for task in range(4):
        assert main([*argv, str(task)]) == 0
    assert stub() == ["pool-seed0", "some-seed0", "fewer-seed0", "random_12-seed0"]
    assert not (tmp_path / "out" / "table.md").exists()
    assert main([*argv, "4"]) == 0
    assert (tmp_path / "out" / "table.md").exists()
    with pytest.raises(ValueError, match="--only_task is 5; there are 0 to 4"):
        main([*argv, "5"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "unknown key seed; known: .*curations"),
        ({"seeds": 3}, "seeds is 3; write a list such as"),
        ({"seeds": [1, 1]}, "write a list such as"),
        ({"name": "a/b"}, "name is 'a/b'; files are called after it"),
        ({"curations": {}}, "curations is {}; write NAME: {keep_list"),
        ({"curations": {"pool": {"keep_list": "x"}}}, "the names pool and random_"),
        ({"curations": {"x": {"keep_list": "none.parquet"}}}, "there is no keep-list none.parquet"),
        ({"curations": {"x": {}}}, r"it needs keep_list \(a Parquet file\) or curation"),
        ({"curations": {"x": {"curation": "basic"}}}, "needs the key `table`"),
        ({"curations": {"x": {"curation": "basic"}}, "table": "nowhere"}, "no score table nowhere"),
        ({"curations": {"x": 3}}, "curation x is 3; it needs the keys"),
        ({"samples": -3}, "samples is -3; write a number"),
        ({"set": {"data.manifest": "x"}}, r"set has data.manifest; here it is given by `pool:"),
        ({"set": {"phases.train.samples": 3}}, "all runs see equally many samples"),
        ({"set": {"phases": {"train": {"samples": 3}}}}, "set has phases, which would replace"),
        ({"set": {"phases.train": {"samples": 3}}}, "set has phases.train, which would replace"),
        ({"set": {"data": {"keep_lists": ["x"]}}}, "set has data, which would replace"),
        ({"evaluate": {"in_distribution": "heldout/top1"}}, "the tasks of suite are colours"),
        ({"evaluate": {"shift": "colours/top1"}}, "shift needs in_distribution"),
        ({"evaluate": {"accuracy": "colours/top1"}}, "unknown key accuracy"),
        ({"baseline": {"samples": [3]}}, "a line needs evaluate"),
        ({"random": 3}, "random is 3; write true or false"),
    ],
)
def test_mistakes_in_the_file_are_one_sentence(pool, tmp_path, stub, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        main([str(tiny_ablation.write(pool, **changes)), "--out", str(tmp_path)])
    assert "\n" not in str(error.value)


def test_a_curation_that_comes_twice_is_refused(pool, tmp_path, stub):
    file = tiny_ablation.write(pool)
    file.write_text(file.read_text().replace("  fewer:", "  some:"))
    with pytest.raises(ValueError, match=r"ablation\.yaml: curations\.some comes twice"):
        main([str(file), "--out", str(tmp_path)])


def test_subsets_that_do_not_fit_the_pool_are_refused(pool, tmp_path, stub):
    beyond = tiny_ablation.write_keep_list(tmp_path / "beyond.parquet", [(0, 17)])
    file = tiny_ablation.write(pool, curations={"x": {"keep_list": beyond}})
    with pytest.raises(ValueError, match=r"sample 17 of the shard .* which has 17"):
        main([str(file), "--out", str(tmp_path)])
    half = tiny_ablation.write_keep_list(tmp_path / "half.parquet", [(0, i) for i in range(9)])
    file = tiny_ablation.write(pool, pool={"keep_list": half})
    with pytest.raises(ValueError, match="16 of its 24 samples are not in the pool"):
        main([str(file), "--out", str(tmp_path)])


def test_a_subset_of_nothing_is_refused(pool, tmp_path, stub):
    rows = [(0, 1), (2, 3)]
    none = tiny_ablation.write_keep_list(tmp_path / "none.parquet", rows, weight=[0.0, 0.0])
    file = tiny_ablation.write(pool, curations={"x": {"keep_list": none}})
    with pytest.raises(ValueError, match=r"curation x: it keeps no sample \(all weights are 0\)"):
        main([str(file), "--out", str(tmp_path)])


def test_a_pool_with_weights_has_no_random_subsets(pool, tmp_path, stub):
    rows = [(shard, i) for shard in range(3) for i in range(17)]
    whole = tiny_ablation.write_keep_list(tmp_path / "pool.parquet", rows, weight=[1.5] * 51)
    file = tiny_ablation.write(pool, pool={"keep_list": whole})
    with pytest.raises(ValueError, match=r"pool\.parquet has weights, and random subsets of it"):
        plan.read_plan(file, tmp_path)
    made = plan.read_plan(
        tiny_ablation.write(pool, pool={"keep_list": whole}, random=False), tmp_path
    )
    assert [subset.kind for subset in made.subsets] == ["pool", "curation", "curation"]


def test_a_job_array_has_all_runs(pool, tmp_path, stub):
    argv = [str(tiny_ablation.write(pool)), "--out", str(tmp_path / "out"), "--slurm"]
    for words in (["--only", "some"], ["--limit", "1"], ["--only_task", "0"], ["--render"]):
        with pytest.raises(ValueError, match=f"{words[0]} says nothing to --slurm"):
            main([*argv, *words])
    for words, array in (([], "0-4"), (["--jobs", "1"], "0-4%1")):
        assert main([*argv, *words]) == 0
        script = (tmp_path / "out" / "ablation.sbatch").read_text()
        (tmp_path / "out" / "ablation.sbatch").unlink()
        assert f"#SBATCH --array={array}\n" in script


def test_a_name_may_be_a_number(pool, tmp_path, stub):
    chosen = tiny_ablation.content(pool)["curations"]
    file = tiny_ablation.write(pool, curations={30: chosen["some"], "fewer": chosen["fewer"]})
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["name"] for row in table["rows"]][:3] == ["pool", "30", "fewer"]


def test_the_folder_may_be_named_in_two_ways(pool, tmp_path, stub, monkeypatch):
    """As a job array does, which gives the whole path, and its user afterwards."""
    monkeypatch.chdir(tmp_path)
    file = tiny_ablation.write(pool)
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    assert len(stub()) == 5
    assert main([str(file), "--out", "out"]) == 0
    assert stub() == []


def test_outcomes_of_another_configuration_do_not_stay(tmp_path, monkeypatch):
    run_dir, file = tmp_path / "run", tmp_path / "x-seed0.json"
    run_dir.mkdir()
    monkeypatch.setattr(
        "counterpoint.launch.commands.ablate.read_run",
        lambda run_dir: SimpleNamespace(metrics=[], rows=[], samples_at=lambda steps: None),
    )
    (run_dir / "outcomes.npz").write_bytes(b"outcomes")
    keep_outcomes(run_dir, file)
    assert file.with_suffix(".npz").read_bytes() == b"outcomes"
    (run_dir / "outcomes.npz").unlink()
    keep_outcomes(run_dir, file)
    assert not file.with_suffix(".npz").exists()


def test_a_curation_of_filters_has_the_files_table_or_its_own(pool, tmp_path, stub, monkeypatch):
    asked = []

    def curated(name, curation, table, stores, folder):
        asked.append((name, curation, table, stores, folder))
        return pool / "some.parquet"

    monkeypatch.setattr(plan, "curated", curated)
    own = {"curation": "basic", "table": "mine", "stores": {"clip": "s"}}
    file = tiny_ablation.write(pool, table="ours", curations={"a": {"curation": "wfpp"}, "b": own})
    made = plan.read_plan(file, tmp_path)
    folder = tmp_path / "curated"
    assert asked == [
        ("a", "wfpp", Path("ours"), {}, folder),
        ("b", "basic", Path("mine"), {"clip": "s"}, folder),
    ]
    assert [(each.name, each.size) for each in made.subsets[1:3]] == [("a", 24), ("b", 24)]


def test_our_own_ablations_are_read(tmp_path, monkeypatch):
    """But for their data: the keys, the run, the evaluations, the curations."""
    monkeypatch.chdir(ROOT)
    planted = Path("tests/benchmarks/planted/ablation.yaml")
    for file in (*packaged_files("ablation").values(), planted):
        reader = plan._Reader(file, tmp_path)
        reader.common = reader._settings(reader.content, str(file))
        config = results.parsed(reader.content["config"], reader.common)
        reader._check_evaluation(config)
        reader._set_samples(config)
        for name, written in reader.curations.items():
            assert set(written) <= plan.CURATION_KEYS, name
            assert load_curation(str(written["curation"])), name


def test_an_evaluation_that_was_not_measured_is_named(pool, tmp_path, stub):
    file = tiny_ablation.write(pool, evaluate={"in_distribution": "colours/top5"})
    with pytest.raises(ValueError, match="top5, which was not measured; there are colours/top1"):
        main([str(file), "--out", str(tmp_path / "out")])
    file = tiny_ablation.write(
        pool,
        evaluate={"in_distribution": "colours/top1", "shift": "colours_shift/top1"},
        baseline={"samples": [9]},
    )
    with pytest.raises(ValueError, match=r"samples has 9, where .* they were at 12"):
        main([str(file), "--out", str(tmp_path / "out")])
