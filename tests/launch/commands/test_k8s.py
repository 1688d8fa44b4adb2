"""The manifest is what was asked for, and its script trains on two nodes that come and go."""

import json
import os
import signal
from pathlib import Path

import cluster_jobs
import pytest
from cluster_jobs import HOSTILE, PAIRS, Pod, launched, sweep_file, words_of
from pool import free_port
from progress import fence
from waiting import until

from counterpoint.launch.cli import main
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.experiments.torchrun_job import run_parser, slug
from counterpoint.train.checkpointing.checkpoint import load, newest

manifest, run_file = cluster_jobs.manifest, cluster_jobs.run_file


def k8s(*options: str) -> list[dict]:
    return launched("k8s", "--image=reg/cp:1", "--volume=data:/data", *options)


def test_a_manifest_is_an_indexed_job_with_a_service(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path / "a b", manifest)
    options = ["--nodes=2", "--gpus=3", "--mem=200Gi", "--grace=90", "--restarts=4"]
    options += ["--volume=runs:/runs/", "--namespace=ml", "--interface=eth0"]
    options += ["--label=kueue.x-k8s.io/queue-name=team", "--setup=echo 'a  b' >&2"]
    service, config_map, job = k8s("--config", str(path), *options, "--name=My_run")
    assert {each["metadata"]["name"] for each in (service, config_map, job)} == {"my-run"}
    assert {each["metadata"]["namespace"] for each in (service, config_map, job)} == {"ml"}
    assert (service["kind"], config_map["kind"], job["kind"]) == ("Service", "ConfigMap", "Job")
    # Pods find one another before they are ready, by names of this service.
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": "my-run"},
    }
    assert job["apiVersion"] == "batch/v1"
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    spec = job["spec"]
    pod = spec.pop("template")["spec"]
    assert spec == {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "backoffLimit": 8,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                }
            ]
        },
        "podReplacementPolicy": "Failed",
    }
    assert (pod["restartPolicy"], pod["subdomain"]) == ("Never", "my-run")
    assert pod["terminationGracePeriodSeconds"] > 90
    (container,) = pod["containers"]
    assert container["image"] == "reg/cp:1"
    assert container["resources"] == {
        "requests": {"cpu": 12, "memory": "200Gi"},  # three ranks with a loader worker each
        "limits": {"nvidia.com/gpu": 3, "memory": "200Gi"},
    }
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    seen = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert seen == {
        "/etc/counterpoint": {"configMap": {"name": "my-run"}},
        "/dev/shm": {"emptyDir": {"medium": "Memory"}},
        "/data": {"persistentVolumeClaim": {"claimName": "data"}},
        "/runs": {"persistentVolumeClaim": {"claimName": "runs"}},
    }
    assert container["command"] == ["bash", "/etc/counterpoint/start.sh"]
    script = config_map["data"]["start.sh"]
    assert "\necho 'a  b' >&2\n" in script and "GLOO_SOCKET_IFNAME=eth0" in script
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=90\n" in script


@pytest.mark.parametrize("index", ["0", "1"])
def test_each_pod_runs_torchrun_with_the_run_as_it_was_written(
    manifest, tmp_path, monkeypatch, index
):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path / "a b", manifest)
    part = {"class_path": "counterpoint.train.grad_clip.fixed.Norm", "init_args": {"max_norm": 3.0}}
    Path("clip.yaml").write_text(json.dumps(part))
    overrides = ["--name", HOSTILE, "--grad_clip", "clip.yaml", "--data.num_workers=0"]
    _, config_map, job = k8s(
        "--config", str(path), "--nodes=2", "--gpus=3", *overrides, "--run_dir=runs/one"
    )
    name = slug(HOSTILE)
    assert job["metadata"]["name"] == name
    script = config_map["data"]["start.sh"]
    words = words_of(script, tmp_path, JOB_COMPLETION_INDEX=index, POD_IP="10.0.0.7")
    assert words[:8] == [
        *("--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_id={name}"),
        f"--rdzv_endpoint={name}-0.{name}:29400",
        f"--rdzv_conf=is_host={'true' if index == '0' else 'false'},"
        "read_timeout=600,join_timeout=3600",
        *("--local_addr=10.0.0.7", "--nproc_per_node=3", "--max_restarts=10"),
    ]
    fit = [*("-m", "counterpoint.launch.cli", "fit"), *("--resume", "auto", "--config")]
    assert words[8:14] == fit
    rest = [f"--name={HOSTILE}", "--data.num_workers=0", "--run_dir=/data/runs/one"]
    assert words[15:] == rest
    # The file in the script, with the slot's file in it, is the run that was named here.
    here = run_config.parse(run_parser(), ["--config", str(path), *overrides])
    there = run_config.parse(run_parser(), ["--config", words[14], *rest[:2]])
    assert run_config.plain(run_parser(), there) == run_config.plain(run_parser(), here)


def test_a_pod_alone_needs_no_service(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path / "run", manifest)
    config_map, job = k8s("--config", str(path), "--gpus=0", "--tasks=2")
    pod = job["spec"]["template"]["spec"]
    assert "subdomain" not in pod and "labels" not in job["metadata"]
    assert pod["containers"][0]["resources"] == {"requests": {"cpu": 8}}
    words = words_of(config_map["data"]["start.sh"], tmp_path)
    assert words[:3] == ["--standalone", "--nproc_per_node=2", "--max_restarts=10"]
    assert words[-1] == "--run_dir=/data/runs/tiny"


def test_a_sweep_is_one_pod_a_pair(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = sweep_file(tmp_path, run_file(tmp_path / "run", manifest))
    more = ["--gpus=1", "--jobs=2", "--restarts=4", "--data.num_workers=0"]
    config_map, job = k8s("--sweep", str(file), *more)
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"]) == (3, 2)
    # One that fails takes no other with it.
    assert spec["backoffLimitPerIndex"] == 4 and "backoffLimit" not in spec
    script = config_map["data"]["start.sh"]
    assert script.count("END_OF_FILE") == 2  # the same file for all of them, once
    for index, (run, seed, own) in enumerate(PAIRS):
        words = words_of(script, tmp_path, JOB_COMPLETION_INDEX=str(index))
        assert words[0] == "--standalone"
        folder = f"/data/runs/My sweep/{run}-seed{seed}"
        rest = [*own, "--data.num_workers=0", f"--seed={seed}", f"--run_dir={folder}"]
        assert words[words.index("--config") + 2 :] == rest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--gpus=5", "batch_size=12 (the global batch) does not divide by the world size 5"),
        ("--gpus=0", "--tasks"),
        ("--nodes=0", "--nodes is 0; give at least 1"),
        ("--model.typo=1", "model.typo"),
        ("--volume=data", "--volume data: write NAME:PATH"),
        ("--volume=data:here", "--volume data:here: write NAME:PATH"),
        ("--run_dir=/else/run", "on no volume and would end with its node: give a --run_dir below"),
        ("--run_dir=../run", "the run folder /run is on no volume"),
        ("--label=a", "--label a: write KEY=VALUE"),
        ("--jobs=2", "--jobs is for --sweep"),
        ("--resume=auto", "leave --resume out"),
        ("--submit", "there is no kubectl on this machine; run this where there is one: kubectl"),
        ("--sweep=catalogue", "not allowed with"),
    ],
)
def test_what_cannot_work_is_one_sentence(manifest, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = run_file(tmp_path / "run", manifest)
    argv = ["--config", str(path), "--gpus=2", "--image=i", "--volume=data:/data", options]
    assert main(["launch", "k8s", *argv]) == 2
    text = capsys.readouterr().err
    assert words in text and text.count("\n") == 1


def test_a_manifest_that_was_edited_is_left_alone(manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["launch", "k8s", "--image=i", "--volume=data:/data", "--gpus=2"]
    argv += ["--config", str(run_file(tmp_path / "run", manifest))]
    assert main(argv) == main(argv) == 0
    path = tmp_path / "tiny.k8s.yaml"
    path.write_text(path.read_text() + "# mine\n")
    assert main(argv) == 2
    assert "as it is (kubectl apply -f tiny.k8s.yaml)" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1])
def test_submit_calls_kubectl(manifest, tmp_path, monkeypatch, capsys, status):
    monkeypatch.chdir(tmp_path)
    program = f'#!/bin/sh\necho "called $@"\necho "no room" >&2\nexit {status}\n'
    Path("kubectl").write_text(program)
    Path("kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    argv = ["launch", "k8s", "--image=i", "--volume=data:/data", "--gpus=2", "--submit"]
    argv += ["--config", str(run_file(tmp_path / "run", manifest))]
    assert main(argv) == (2 if status else 0)
    printed = capsys.readouterr()
    assert ("called apply -f tiny.k8s.yaml" in printed.out) == (not status)
    assert ("kubectl refuses tiny.k8s.yaml: no room" in printed.err) == bool(status)


@pytest.mark.soak
def test_two_pods_train_and_one_is_replaced(manifest, tmp_path, monkeypatch):
    """The same weights as two processes that were left alone."""
    monkeypatch.chdir(tmp_path)
    no_other = {"every_n_steps": 1000, "keep": 2}
    path = run_file(tmp_path / "file", manifest, checkpoint=no_other)
    folder = tmp_path / "volume"
    options = ["--image=i", f"--volume=data:{folder}", "--nodes=2", "--gpus=0", "--tasks=1"]
    _, config_map, _ = launched("k8s", "--config", str(path), *options)
    script = config_map["data"]["start.sh"]
    here = script.replace("tiny-0.tiny", "127.0.0.1").replace("29400", str(free_port()))
    at = tmp_path / "file" / "at"
    fence(at, 12)
    pods = [Pod(here, index, tmp_path) for index in range(2)]
    ranks = [at.with_name(f"at.{rank}") for rank in range(2)]
    try:
        until(
            lambda: all(rank.exists() and int(rank.read_text().split()[1]) >= 10 for rank in ranks),
            lambda: all(pod.alive() for pod in pods),
            lambda: "\n".join(pod.text() for pod in pods),
        )
        # What Kubernetes does to a pod whose node is drained; then it starts another one.
        pods[1].process.send_signal(signal.SIGTERM)
        fence(at, None)
        assert pods[1].process.wait() != 0
        assert pods[0].alive()
        pods[1] = Pod(here, 1, tmp_path)
        assert [pod.process.wait() for pod in pods] == [0, 0], "\n".join(p.text() for p in pods)
    finally:
        for pod in pods:
            pod.process.kill()
    run_dir = folder / "runs" / "tiny"
    starts = [json.loads(line) for line in (run_dir / "starts.jsonl").read_text().splitlines()]
    # It has saved when it was told to end, and at no other time.
    assert starts[0]["step"] == 0 and starts[1]["step"] >= 10

    from processes import fit

    fit(["--config", str(path), "--run_dir", str(tmp_path / "whole")], 2, tmp_path / "log")
    got, want = (load(newest(folder))["state_dict"] for folder in (run_dir, tmp_path / "whole"))
    assert got.keys() == want.keys()
    assert [name for name in want if not (got[name] == want[name]).all()] == []
