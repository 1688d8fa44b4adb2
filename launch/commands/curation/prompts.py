"""`counterpoint prompts`: a teacher's embeddings of class prompts, for filters.

In: a run file with the teacher, or a run, as for `counterpoint embed`; names of classes, templates.
Out: a file with `classes` [classes, d], for CLIPCov and for probes by prompts. A class is the mean
of its prompts' embeddings, of length one (Radford et al. 2021, section 3.1.4).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn import functional as F

from ....data.files import whole_file
from ....models.teachers.frozen import Frozen
from ... import arguments
from ...config import parser as run_config
from ...run.build import build_parts
from ...run.load import checkpoint_of
from ...run.start.teachers import load_teacher

TEMPLATES = ("a photo of a {c}.",)
CHUNK = 256  # prompts at a time


def main(argv: list[str]) -> int:
    """Writes the file; returns 0."""
    chosen, rest = arguments.prompts().parse_known_args(argv)
    names = lines_of(chosen.classes)
    templates = lines_of(chosen.templates) if chosen.templates else TEMPLATES
    if wrong := [template for template in templates if "{c}" not in template]:
        raise ValueError(f"the template '{wrong[0]}' needs {{c}} where the class name goes")
    if chosen.run is not None:
        chosen.teacher = "run"
        frozen = f"{Frozen.__module__}.{Frozen.__qualname__}"
        source = str(checkpoint_of(chosen.run, chosen.checkpoint))
        teacher = {"class_path": frozen, "init_args": {"source": source}}
        teachers = f"--teachers={json.dumps({chosen.teacher: teacher})}"
        rest = [*arguments.words_of_run(chosen.run), *rest, teachers]
    parser = run_config.make_parser()
    parts = build_parts(parser, run_config.parse(parser, rest))
    if chosen.teacher not in (parts.teachers or {}):
        known = ", ".join(parts.teachers or {}) or "none"
        raise ValueError(f"the run file has no teacher '{chosen.teacher}'; it has {known}")
    towers, views = load_teacher(parts, chosen.teacher, [chosen.view])
    tokenize, length = parts.data.reads(chosen.view)
    texts = [template.replace("{c}", name) for name in names for template in templates]
    features = []
    for first in range(0, len(texts), CHUNK):
        ids, lengths = tokenize(texts[first : first + CHUNK], length)
        batch = {chosen.view: ids, f"{chosen.view}_length": lengths}
        features.append(F.normalize(towers(batch, views)[chosen.view].float(), dim=-1))
    means = torch.cat(features).reshape(len(names), len(templates), -1).mean(1)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(chosen.out) as part:
        part.write_bytes(save({"classes": F.normalize(means, dim=-1)}))
    print(f"{chosen.out}: {len(names):,} classes, {len(templates)} prompts each")
    return 0


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a file that are not blank.

    Raises:
        ValueError: there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' cannot be read as lines of text ({error})") from error
    if not (lines := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"'{path}' has no line of text")
    return lines
