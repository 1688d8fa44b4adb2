"""The task of SkyPilot is what was asked for, and each of its nodes starts torchrun alike."""

import os
from pathlib import Path

import cluster_jobs
import pytest
import yaml

from counterpoint.launch.cli import main

manifest, run_file = cluster_jobs.manifest, cluster_jobs.run_file


def sky(*options: str) -> dict:
    (task,) = cluster_jobs.launched("sky", *options)
    return task


def test_a_task_says_what_was_asked(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path / "a b", manifest)
    options = ["--nodes=2", "--gpus=H100:3", "--mem=200", "--cpus=32", "--spot", "--restarts=4"]
    options += ["--infra=aws/us-east-1", "--volume=s3://pairs/train:/data", "--volume=runs:/runs"]
    task = sky("--config", str(path), *options, "--run_dir=/runs/a", "--setup=pip install x")
    run = task.pop("run")
    assert task == {
        "name": "tiny",
        "num_nodes": 2,
        "resources": {
            "accelerators": "H100:3",
            "cpus": "32+",
            "memory": "200+",
            "infra": "aws/us-east-1",
            "use_spot": True,
            "job_recovery": {"max_restarts_on_errors": 4},
        },
        "file_mounts": {"/data": {"source": "s3://pairs/train", "mode": "MOUNT"}},
        "volumes": {"/runs": "runs"},
        "setup": "pip install x\n",
    }
    assert "pip install" not in run
    for rank, address in enumerate(("10.0.0.7", "10.0.0.9")):
        variables = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.9\n"}
        words = cluster_jobs.words_of(run, tmp_path, **variables)
        assert words[:8] == [
            *("--nnodes=2", "--rdzv_backend=c10d", "--rdzv_id=tiny"),
            "--rdzv_endpoint=10.0.0.7:29400",
            f"--rdzv_conf=is_host={'false' if rank else 'true'},read_timeout=600,join_timeout=3600",
            *(f"--local_addr={address}", "--nproc_per_node=3", "--max_restarts=4"),
        ]
        assert words[8:13] == ["-m", "counterpoint.launch.cli", "fit", "--resume", "auto"]
        assert words[-1] == "--run_dir=/runs/a"


def test_a_node_alone_may_keep_its_run_in_a_bucket(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path / "run", manifest)
    options = ["--image=reg/cp:1", "--tasks=2", "--volume=gs://mine:/data"]
    task = sky("--config", str(path), *options)
    assert task["resources"]["image_id"] == "docker:reg/cp:1"
    assert task["resources"]["cpus"] == "8+" and "accelerators" not in task["resources"]
    # It is appended to and renamed in, which a plain mount of a bucket does not allow.
    assert task["file_mounts"] == {"/data": {"source": "gs://mine", "mode": "MOUNT_CACHED"}}
    assert {"setup", "volumes", "envs"}.isdisjoint(task)
    assert cluster_jobs.words_of(task["run"], tmp_path)[0] == "--standalone"


def test_a_sweep_is_one_task_a_pair(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sky").write_text('#!/bin/sh\necho "$@" >> calls\n')
    Path("sky").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = cluster_jobs.sweep_file(tmp_path, run_file(tmp_path / "run", manifest))
    options = ["--image=i", "--gpus=L4:1", "--volume=runs:/data"]
    task = sky("--sweep", str(file), *options, "--submit")
    words = ["jobs launch --yes --detach-run --env"]
    assert Path("calls").read_text().splitlines() == [
        f"{words[0]} RUN={index} out.yaml" for index in range(3)
    ]
    assert task["envs"] == {"RUN": "0"}
    for index, (run, seed, _) in enumerate(cluster_jobs.PAIRS):
        words = cluster_jobs.words_of(task["run"], tmp_path, RUN=str(index))
        assert words[-2:] == [f"--seed={seed}", f"--run_dir=/data/runs/My sweep/{run}-seed{seed}"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus=8"], "--gpus 8: write KIND:N, such as H100:8"),
        (["--tasks=0"], "a node without GPUs needs --tasks"),
        (["--image="], "say how Counterpoint comes to the nodes"),
        (["--volume=s3://runs:/data", "--nodes=2"], "is in the bucket s3://runs, whose files"),
        (["--submit"], "there is no sky on this machine; run this where there is one: sky jobs"),
    ],
)
def test_what_cannot_work_is_one_sentence(manifest, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = run_file(tmp_path / "run", manifest)
    argv = ["--config", str(path), "--gpus=H100:2", "--image=i", "--volume=v:/data", *options]
    assert main(["launch", "sky", *argv]) == 2
    text = capsys.readouterr().err
    assert words in text and text.count("\n") == 1


def test_the_file_is_yaml_whatever_the_names(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path / "run", manifest)
    argv = ["--gpus=H100:2", '--image=a: "b" #c', "--volume=x#y: z:/da ta"]
    task = sky("--config", str(path), *argv, f"--name={cluster_jobs.HOSTILE}")
    assert task["volumes"] == {"/da ta": "x#y: z"}
    assert task["resources"]["image_id"] == 'docker:a: "b" #c'
    assert "cd '/da ta'\n" in task["run"]
    assert yaml.safe_load(Path("out.yaml").read_text()) == task
