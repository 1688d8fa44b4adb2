"""Runs of several stages: one run file a stage.

In: what was read, in which each stage has all slots. Out: what stands for each stage, with the
options of the command line that concern it.
"""

from .run_files import STAGES, Option, Written, of_stage

FILE = "stages.yaml"  # of a run folder: the stages' configurations
# What all stages of a run share: one command trains them, in one folder, from one start.
SHARED = (
    *("run_dir", "mirror", "name", "seed", "init_from", "inherit_from"),
    *("trainer", "checkpoint", "watch"),
)
# Of the model, a stage may change what has no weights, and the number of positions.
OF_MODEL = (
    *("image.image_size", "text.context_length", "text.kept_positions"),
    *("chunks", "text_parts"),
)


def split_stages(written: Written) -> dict[str, Written]:
    """Returns what is written for each stage, by name; a run without stages has one called "".

    An option without `stages.NAME` concerns every stage, one of a phase those that have the phase.

    Raises:
        ValueError: an option names a stage or a phase that there is not.
    """
    stages = written.tree.get(STAGES)
    if stages is None:
        for option in written.options:
            if (name := of_stage(option.name)[0]) or option.name == STAGES:
                raise ValueError(f"--{option.name}: the run has no stages, and so no {name}")
        return {"": written}
    taken: dict[str, list[Option]] = {name: [] for name in stages}
    for option in written.options:
        stage, key = of_stage(option.name)
        group, _, rest = key.partition(".")
        phase = rest.partition(".")[0]
        names = [
            name
            for name, tree in stages.items()
            if stage in ("", name) and (stage or group != "phases" or phase in tree.get(group, {}))
        ]
        if not names:
            there = ", ".join(f"{n} ({', '.join(t.get('phases', {}))})" for n, t in stages.items())
            raise ValueError(f"--{option.name}: there is no such stage or phase; there are {there}")
        for name in names:
            taken[name].append(Option(key, option.value))
    found = {}
    for name, tree in stages.items():
        of = f"{STAGES}.{name}."
        files = {k.removeprefix(of): v for k, v in written.files.items() if k.startswith(of)}
        found[name] = Written(tree, taken[name], {"": written.files.get("", "")} | files)
    return found
