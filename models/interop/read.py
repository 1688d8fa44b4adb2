"""Which library's model lies in a place, and reading it: `read_foreign(source)`.

In: a folder, `local-dir:FOLDER`, a file, or `NAME:FILE`, where NAME is the architecture in the
words of open_clip (`ViT-B-32`) or timm (`timm/vit_base_patch16_224`), or `openai`. Out: a
`ForeignModel`.
"""

from pathlib import Path

from . import dual_encoder, open_clip, timm, transformers, transformers_encoder
from .archive import is_torchscript, read_tensors
from .base import ForeignModel
from .openai import convert_openai, is_openai

FORMS = (
    "give a folder with open_clip_config.json, a folder of transformers' save_pretrained, a file "
    "as OpenAI published it, or NAME:FILE with the architecture's name in open_clip "
    "(ViT-B-32:FILE) or timm (timm/vit_base_patch16_224:FILE), or openai:FILE"
)


def read_foreign(source: str) -> ForeignModel:
    """Reads another library's model; nothing of it is executed and nothing is downloaded.

    Raises:
        ValueError: nothing lies there, or nothing that can be read.
    """
    path = Path(source.removeprefix("local-dir:"))
    name, colon, file = source.partition(":")
    if not path.exists() and colon and name:
        return _read_named(name, Path(file))
    if path.is_dir():
        try:
            return _read_folder(path)
        except KeyError as error:
            raise ValueError(f"{source} is incomplete: its settings have no {error}") from error
    if not path.is_file():
        raise ValueError(f"{source} is not there; {FORMS}")
    tensors = read_tensors(path)
    if is_openai(tensors) or is_torchscript(path):
        return convert_openai(tensors)
    raise ValueError(f"{source}: by itself the file does not say what it is of; {FORMS}")


def is_foreign(source: str) -> bool:
    """Whether a source is another library's by its place alone: a folder or `NAME:FILE`.

    A single file may be ours, too: its tensors' names tell.
    """
    path = Path(source.removeprefix("local-dir:"))
    if path.is_dir():
        return any((path / name).is_file() for name in (open_clip.CONFIG, transformers.CONFIG))
    return not path.exists() and ":" in source


def _read_folder(path: Path) -> ForeignModel:
    if (path / open_clip.CONFIG).is_file():
        return open_clip.read_folder(path)
    if timm.is_folder(path):
        return timm.read_folder(path)
    if dual_encoder.is_folder(path):
        return dual_encoder.read_folder(path)
    if transformers_encoder.is_folder(path):
        return transformers_encoder.read_folder(path)
    if (path / transformers.CONFIG).is_file():
        return transformers.read_folder(path)
    raise ValueError(f"{path} holds no model that can be read; {FORMS}")


def _read_named(name: str, file: Path) -> ForeignModel:
    if not file.is_file():
        raise ValueError(f"{name}:{file}: there is no file {file}; {FORMS}")
    tensors = read_tensors(file)
    if name == "openai":
        return convert_openai(tensors)
    if name.startswith("timm/"):
        return timm.convert(name.removeprefix("timm/"), tensors)
    return open_clip.convert_named(name, tensors)
