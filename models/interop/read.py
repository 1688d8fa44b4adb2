"""Which library's model lies in a place, and reading it: `read_foreign(source)`.

In: a folder, `local-dir:FOLDER`, a file, or `NAME:FILE`, where NAME is the architecture in the
words of open_clip (`ViT-B-32`) or timm (`timm/vit_base_patch16_224`). Out: a `ForeignModel`.
"""

from pathlib import Path

from . import open_clip, transformers
from .base import ForeignModel

FORMS = (
    "give a folder with open_clip_config.json, a folder of transformers' save_pretrained, a file "
    "of OpenAI's CLIP, or NAME:FILE with the architecture's name in open_clip (ViT-B-32:FILE) or "
    "timm (timm/vit_base_patch16_224:FILE)"
)


def read_foreign(source: str) -> ForeignModel:
    """Reads another library's model; nothing of it is executed and nothing is downloaded.

    Raises:
        ValueError: nothing lies there, or nothing that can be read.
    """
    source = source.removeprefix("local-dir:")
    name, colon, file = source.partition(":")
    if colon and not Path(source).exists():
        if not Path(file).is_file():
            raise ValueError(f"{source}: there is no file {file}; {FORMS}")
        return open_clip.read_named(name, Path(file))
    path = Path(source)
    if (path / open_clip.CONFIG).is_file():
        return open_clip.read_folder(path)
    if (path / transformers.CONFIG).is_file():
        return transformers.read_folder(path)
    raise ValueError(f"{source} is no model that can be read; {FORMS}")
