"""sbatch, srun, scontrol and squeue in small: one machine, no queue, the same words and variables.

Called as one of them. A job is a folder ($FAKE_SLURM) with the files `state`, `requeue` and, while
tasks run, their process ids in `tasks`.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("FAKE_SLURM", "."))
JOB = "4242"


def directive(script: str, name: str) -> str | None:
    match = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE)
    return match and match[1]


def sbatch(argv: list[str]) -> int:
    """Runs the script at once, again after every requeue; the log goes to its `--output`."""
    path = Path(argv[-1])
    script = path.read_text()
    nodes = int(directive(script, "nodes") or 1)
    tasks = int(directive(script, "ntasks-per-node") or 1)
    assert directive(script, "requeue") is None and "#SBATCH --requeue" in script
    log = Path((directive(script, "output") or "").replace("%j", JOB))
    environment = {
        **os.environ,
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NAME": directive(script, "job-name") or "sbatch",
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_CPUS_PER_TASK": directive(script, "cpus-per-task") or "",
        "SLURM_JOB_NODELIST": "localhost",
    }
    print(f"Submitted batch job {JOB}", flush=True)
    array = directive(script, "array")
    if array is None:
        return run_job(path, str(log), environment)
    first, last = map(int, array.partition("%")[0].split("-"))
    for task in range(first, last + 1):
        of_task = {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(task)}
        own_log = str(log).replace("%A", JOB).replace("%a", str(task))
        run_job(path, own_log, environment | of_task)
    return 0


def run_job(path: Path, log: str, environment: dict[str, str]) -> int:
    """Runs a job's script, again after every requeue."""
    for restart in range(9):
        (FOLDER / "requeue").unlink(missing_ok=True)
        (FOLDER / "state").write_text("RUNNING")
        if restart:
            environment["SLURM_RESTART_COUNT"] = str(restart)
        with open(log, "ab") as out:
            status = subprocess.run(["bash", path], stdout=out, stderr=out, env=environment)
        if not (FOLDER / "requeue").exists():
            break
    (FOLDER / "state").write_text(f"ENDED {status.returncode} {restart}")
    return 0


def srun(argv: list[str]) -> int:
    """Starts the tasks; ends all when one fails; returns the highest exit status."""
    cpus = os.environ["SLURM_CPUS_PER_TASK"]
    assert cpus and argv[:2] == ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"], argv
    count = int(os.environ["SLURM_NTASKS"])
    nodes = int(os.environ["SLURM_NNODES"])
    here = count // nodes
    running = []
    for task in range(count):
        of_task = {
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_STEP_TASKS_PER_NODE": f"{here}(x{nodes})" if nodes > 1 else str(here),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task % here),
            "SLURM_NODEID": str(task // here),
        }
        running.append(subprocess.Popen(argv[2:], env={**os.environ, **of_task}))
    (FOLDER / "tasks").write_text(" ".join(str(process.pid) for process in running))
    statuses = []
    while running:
        pid, code = os.wait()
        statuses.append(os.waitstatus_to_exitcode(code))
        running = [process for process in running if process.pid != pid]
        if statuses[-1]:
            for process in running:
                process.send_signal(signal.SIGTERM)
    (FOLDER / "tasks").unlink()
    return max(status if status >= 0 else 128 - status for status in statuses)


def scontrol(argv: list[str]) -> int:
    assert argv == ["requeue", JOB], argv
    (FOLDER / "requeue").touch()
    return 0


def squeue(argv: list[str]) -> int:
    assert argv == ["-h", "-j", JOB, "-o", "%T"], argv
    print((FOLDER / "state").read_text())
    return 0


def install(folder: Path) -> dict[str, str]:
    """Puts the commands into a folder; returns the environment in which they are found."""
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue", "counterpoint"):
        words = [sys.executable, __file__, name]
        if name == "counterpoint":
            words = [sys.executable, "-m", "counterpoint.launch.cli"]
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
