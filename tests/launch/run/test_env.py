"""What a process sets for itself before anything runs."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from counterpoint.data import workers
from counterpoint.data.dataset import PART_BYTES
from counterpoint.data.workers import cores_for, cores_of, cpu_quota, num_workers
from counterpoint.launch.run import env
from counterpoint.launch.run.devices import check_shared_memory
from counterpoint.launch.run.env import choose_attention, prepare, share_cores


def test_float32_products_stay_float32():
    assert torch.get_float32_matmul_precision() == "highest"
    prepare()
    assert torch.get_float32_matmul_precision() == "highest"


CUDA = {
    "TRITON_DEFAULT_FP_FUSION": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "NCCL_LAUNCH_ORDER_IMPLICIT": "1",
}


@pytest.fixture
def bare(monkeypatch):
    """An environment that says nothing about CUDA, on a Linux with torch for it."""
    for name in (*CUDA, "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_cuda_is_told_what_suits_training(bare):
    env.prepare_cuda()
    assert {name: os.environ.get(name) for name in CUDA} == CUDA
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


@pytest.mark.parametrize("name", [*CUDA, "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_the_user_says_to_cuda_holds(bare, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    env.prepare_cuda()
    assert os.environ[name] == "0"
    if "ALLOC" in name:
        assert sum("ALLOC_CONF" in other for other in os.environ) == 1


def test_without_cuda_its_libraries_are_told_nothing(bare, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    env.prepare_cuda()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    assert "NCCL_LAUNCH_ORDER_IMPLICIT" not in os.environ


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine of eight cores, outside of SLURM, whose threads are only counted."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(workers, "cpu_quota", lambda: None)
    found = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1] if found else 8)
    monkeypatch.setattr(env, "_shared", "")
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    return found


def test_processes_share_the_cores(monkeypatch, eight_cores):
    assert [cores_of(n) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    share_cores(1)
    assert eight_cores == [] and "OMP_NUM_THREADS" not in os.environ
    share_cores(2)
    assert eight_cores == [4] and os.environ.pop("OMP_NUM_THREADS") == "4"
    eight_cores.clear()
    monkeypatch.setattr(workers, "cpu_quota", lambda: 2.5)
    share_cores(1)
    assert eight_cores == [3] and os.environ.pop("OMP_NUM_THREADS") == "3"


def test_processes_share_what_a_container_may_use(monkeypatch, eight_cores):
    monkeypatch.setattr(workers, "cpu_quota", lambda: 4)
    share_cores(1)  # before it is known how many processes the run has
    share_cores(2)
    assert eight_cores == [4, 2] and os.environ.pop("OMP_NUM_THREADS") == "2"


def test_what_the_user_or_the_scheduler_says_about_threads_holds(monkeypatch, eight_cores):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    share_cores(4)
    assert eight_cores == []
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert cores_of(2) == 4  # two processes that this one has started
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "slurm-17")
    assert cores_of(2) == 3  # two tasks of srun, bound to three cores each or not


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", None), ("150000 100000\n", 1.5), (None, None)]
)
def test_a_container_may_use_fewer_cores_than_it_sees(tmp_path, text, cores):
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize(
    ("precision", "has_gpu", "fused"),
    [
        ("bf16-mixed", False, False),
        ("bf16-true", False, False),
        ("16-mixed", False, False),
        ("32-true", False, True),
        (None, False, True),
        ("bf16-mixed", True, True),
    ],
)
def test_fused_attention_where_it_is_faster(monkeypatch, precision, has_gpu, fused):
    before = torch.backends.cuda.flash_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    try:
        choose_attention(precision)
        assert torch.backends.cuda.flash_sdp_enabled() == fused
    finally:
        torch.backends.cuda.enable_flash_sdp(before)


def test_workers_leave_cores_to_training(monkeypatch, eight_cores):
    assert [num_workers(n) for n in (1, 2, 8)] == [5, 1, 1]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(192)))
    assert [num_workers(n) for n in (1, 8, 16)] == [16, 16, 9]
    assert (cores_for("auto"), cores_for(8)) == (12, 11)


def test_files_and_connections(tmp_path):
    """In a process of its own: limits once lowered may stay so."""
    program = (
        "import os, resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))\n"
        "from counterpoint.launch.run.env import allow_files, prepare\n"
        "prepare()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), os.environ['TORCH_GLOO_LAZY_INIT'])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))\n"
        "allow_files()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("TORCH_GLOO_LAZY_INIT", None)
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(4096, 4096) 1", "(300, 300)"]


@pytest.mark.parametrize(("free", "needed"), [(1000, 3), (2, 3)])
def test_too_little_shared_memory_is_said(monkeypatch, free, needed):
    """Three workers of each of two ranks, with four parts of 128 MiB: three GiB."""
    data = SimpleNamespace(
        steps=SimpleNamespace(phases=[(5, 64), (5, 4096)]),
        recipe=lambda: SimpleNamespace(bytes_per_sample=PART_BYTES // 512),
        workers=lambda: 3 * (1 << 27) // PART_BYTES,
    )
    status = SimpleNamespace(f_bavail=free << 18, f_frsize=1 << 12)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    said = check_shared_memory(data, 2, 8)
    assert (said is None) == (free > needed)
    if said is not None:
        assert f"may hold {needed:.1f} GiB" in said and f"has {free:.1f}" in said
