"""`counterpoint replay CAPSULE`: a step that was not finite, computed again on the CPU.

In: a file that a run with `trace.nonfinite` has written. Out: the first module, and the first
gradient, that is not finite.
"""

from ...models.weights import read_torch
from ...train.module import RunInfo
from ...train.replay import replay
from .. import arguments
from ..config import parser as run_config
from ..run.build import build_module, build_parts
from ..run.env import quieten
from ..run.start.teachers import load_teachers

KEYS = {"step", "seed", "config", "precision", "world_size", "ranks", "parts"}
KEYS |= {"earlier", "grad_norm", "state_dict"}


def main(argv: list[str]) -> int:
    """Prints what is not finite; returns 1 if everything is."""
    path = arguments.replay().parse_args(argv).capsule
    quieten()
    try:
        capsule = read_torch(path)
        missing = KEYS - capsule.keys()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}): is it whole?") from error
    if missing:
        raise ValueError(
            f"{path} is no capsule: it lacks {', '.join(sorted(missing))}; a run writes capsules "
            "to RUN_DIR/nonfinite/ with --trace.nonfinite 1"
        )
    parser = run_config.make_parser()
    earlier = [(int(steps), int(size)) for steps, size in capsule["earlier"]]
    parts = build_parts(parser, parser.parse_object(capsule["config"]), earlier)
    teachers = load_teachers(parts) if parts.teachers else {}
    module = build_module(parts, teachers, RunInfo())
    ranks, world_size = capsule["ranks"], capsule["world_size"]
    print(f"step {capsule['step'] + 1}, rows of {len(ranks)} of {world_size} ranks, ", end="")
    print(f"{capsule['precision']}; the norm of its gradient was {capsule['grad_norm']:.6g}")
    lines, was_seen = replay(module, capsule)
    print(*lines, sep="\n")
    if not was_seen:
        print("everything is finite here: the device computed otherwise than this processor does")
    return 0 if was_seen else 1
