"""`counterpoint fit`: train a run, or continue one.

In: a run file and leaf overrides, or `--resume RUN_DIR`. Out: the run folder: `config.yaml`,
`metrics.jsonl`, `checkpoints/`, `tensorboard/` and, at the end, `summary.json`.
"""

import json
import platform
import signal
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from ..data.schedule import Schedule
from ..models.weights import load_weights, read_weights
from ..train import checkpoint as checkpoints
from ..train.control import StopOnSignal
from ..train.errors import CountErrors
from ..train.evaluate import Evaluate
from ..train.metrics import Metrics, MetricsFile, read_rows
from ..train.module import ContrastiveModule
from ..train.phases import Phases
from ..train.resume import check_resume
from . import config as run_config
from .env import is_first_process, prepare, under_torchrun
from .paths import find_config


def main(argv: list[str]) -> int:
    """Parses the command line and trains; returns 0, or 128 + the signal that stopped the run."""
    prepare()
    argv, resume = take_option(argv, "--resume")
    if resume is not None:
        argv = ["--config", str(_config_of(resume)), *argv]
        if "--run_dir" not in argv:
            argv += ["--run_dir", resume]
    parser = run_config.make_parser()
    config = run_config.parse(parser, with_found_configs(argv))
    resolved = run_config.plain(parser, config)
    return fit(config, resolved, parser, None if resume is None else Path(resume))


def take_option(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """Removes `name VALUE` or `name=VALUE` from the arguments and returns the value."""
    for i, word in enumerate(argv):
        if word == name:
            if i + 1 == len(argv):
                raise ValueError(f"{name} needs a value")
            return argv[:i] + argv[i + 2 :], argv[i + 1]
        if word.startswith(name + "="):
            return argv[:i] + argv[i + 1 :], word.split("=", 1)[1]
    return argv, None


def with_found_configs(argv: list[str]) -> list[str]:
    """Replaces the name after `--config` by the path of the packaged run of that name."""
    argv, name = take_option(argv, "--config")
    return argv if name is None else ["--config", str(find_config(name)), *argv]


def fit(config: Any, resolved: dict[str, Any], parser: Any, resume: Path | None) -> int:
    """Builds everything, trains, writes the summary."""
    started = time.time()
    run_dir = Path(config.run_dir or f"runs/{config.name}")
    torch.manual_seed(config.seed)
    parts = parser.instantiate(config)
    phases = Phases(parts.phases)
    trainer_args = trainer_arguments(parts.trainer)
    schedule = Schedule(phases.lengths)
    parts.data.connect(
        schedule=schedule,
        seed=config.seed,
        image_size=parts.model.image_size,
        context_length=parts.model.context_length,
    )
    module = ContrastiveModule(parts.model, parts.objective, parts.optim, phases, config.seed)
    module.resolved_config = resolved
    module.fingerprint = parts.data.manifest.fingerprint

    checkpoint = None
    if resume is not None:
        checkpoint = resumable(resume, resolved, module.fingerprint, phases.total_steps)
    else:
        prepare_folder(run_dir)
        if config.init_from:
            source = checkpoints.newest(config.init_from) or Path(config.init_from)
            report = load_weights(parts.model, read_weights(source), str(source))
            say(f"init_from {source}: {report}")
    if is_first_process():
        run_config.save(resolved, run_dir / "config.yaml")

    step = 0 if checkpoint is None else checkpoints.step_of(checkpoint)
    metrics = MetricsFile(run_dir / "metrics.jsonl", None if checkpoint is None else step)
    stop = StopOnSignal()
    trainer = Trainer(
        **dict(
            trainer_args,
            logger=[metrics, *_loggers(trainer_args.get("logger"), run_dir, step)],
            callbacks=[
                *(trainer_args.get("callbacks") or []),
                stop,
                CountErrors(parts.checkpoint.every_n_steps),
                Metrics(),
                Evaluate(parts.evaluation),
                checkpoints.Checkpoints(run_dir / "checkpoints", **vars(parts.checkpoint)),
            ],
            plugins=[*(trainer_args.get("plugins") or []), checkpoints.AtomicCheckpointIO()],
        ),
        max_steps=phases.total_steps,
        max_epochs=-1,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        default_root_dir=run_dir,
    )
    say(f"{config.name}: {phases.total_steps} steps, results in {run_dir}")
    trainer.fit(module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step < phases.total_steps:
        number = stop.signum or signal.SIGTERM
        say(
            f"stopped by {signal.Signals(number).name} after step {trainer.global_step}; "
            f"continue with: counterpoint fit --resume {run_dir}"
        )
        return 128 + number
    if trainer.is_global_zero:
        write_summary(run_dir, resolved, phases, time.time() - started)
    return 0


def trainer_arguments(chosen: Any) -> dict[str, Any]:
    """The trainer's arguments as chosen, with torchrun's world instead of a second one.

    Raises:
        ValueError: accumulation is asked for.
    """
    arguments = {k: v for k, v in vars(chosen).items() if v is not None}
    if arguments.get("accumulate_grad_batches", 1) > 1:
        raise ValueError(
            "trainer.accumulate_grad_batches > 1 would contrast each pair with a part of the batch "
            "only; keep it 1 and set phases.NAME.batch_size to the global batch you want"
        )
    if world := under_torchrun():
        arguments["devices"], arguments["num_nodes"] = world
    return arguments


def resumable(run_dir: Path, resolved: dict[str, Any], fingerprint: str, total_steps: int) -> Path:
    """The newest checkpoint of a run, after checking that it may be continued like this.

    Raises:
        ValueError: no checkpoint, a finished run, or a change that may not be made.
    """
    path = checkpoints.newest(run_dir)
    if path is None:
        raise ValueError(f"{run_dir} holds no checkpoint; start the run again without --resume")
    saved = checkpoints.load(path)
    if "counterpoint" not in saved:
        raise ValueError(f"{path} was not written by counterpoint; use --init_from for its weights")
    check_resume(
        saved["counterpoint"]["config"], resolved, saved["counterpoint"]["fingerprint"], fingerprint
    )
    if checkpoints.step_of(path) >= total_steps:
        raise ValueError(
            f"{run_dir} is finished ({total_steps} steps); raise phases.NAME.samples to go on"
        )
    return path


def prepare_folder(run_dir: Path) -> None:
    """Makes the run folder; a folder with a run in it is left alone.

    Raises:
        ValueError: the folder already holds a run.
    """
    if is_first_process():
        if (run_dir / "config.yaml").exists():
            raise ValueError(
                f"{run_dir} already holds a run: continue it with --resume {run_dir}, or choose "
                "another --run_dir"
            )
        run_dir.mkdir(parents=True, exist_ok=True)


def write_summary(run_dir: Path, resolved: dict[str, Any], phases: Phases, seconds: float) -> None:
    """Writes `summary.json`: the last value of every metric and what produced it."""
    rows = read_rows(run_dir / "metrics.jsonl")
    final: dict[str, Any] = {}
    for row in rows:
        final |= {k: v for k, v in row.items() if k not in ("step", "wall")}
    summary = {
        "name": resolved["name"],
        "final": final,
        "steps": phases.total_steps,
        "samples": phases.samples_before(phases.total_steps),
        "seconds": round(max(row["wall"] for row in rows), 1),
        "seconds_last_process": round(seconds, 1),
        "config_hash": run_config.config_hash(resolved),
        "seed": resolved["seed"],
        "versions": {"python": platform.python_version(), **_versions()},
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def say(text: str) -> None:
    """Prints from the first process only."""
    if is_first_process():
        print(text, flush=True)


def _config_of(run_dir: str) -> Path:
    path = Path(run_dir, "config.yaml")
    if not path.exists():
        raise ValueError(f"--resume {run_dir}: there is no run (no {path})")
    return path


def _loggers(chosen: Any, run_dir: Path, step: int) -> list[Any]:
    if isinstance(chosen, list):
        return chosen
    if chosen not in (None, True):
        return [chosen] if chosen else []
    try:
        version("tensorboard")
    except PackageNotFoundError:
        return []
    from lightning.pytorch.loggers import TensorBoardLogger

    purge: dict[str, Any] = {"purge_step": step + 1} if step else {}
    return [TensorBoardLogger(run_dir, name="tensorboard", version="", **purge)]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "lightning", "timm", "transformers")}
