"""What a layout has to offer, so that a run can be exported to it: `Target`."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor

from .source import Source


class Reloaded(ABC):
    """An exported model, as the target's own library loads it."""

    @abstractmethod
    def grey_levels(self, images: Sequence[Image.Image]) -> Tensor:
        """Prepares images of any size: [n, 3, size, size], in 0..255, not yet normalised."""

    @abstractmethod
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Prepares and encodes images: [n, d], of length one."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encodes texts: [n, d], of length one."""


class Target(ABC):
    """A layout that models are exported to.

    Attributes:
        name: as it is given to `--to`.
        packages: what writing it imports: names that pip knows, by module.
        needs: packages that pip has to install where it is used.
        suffix: of the one file that it is; "" where it is a folder.
        library: name in the card's metadata.
    """

    name: str
    packages: Mapping[str, str] = {}
    needs: tuple[str, ...] = ()
    suffix: str = ""
    library: str

    @abstractmethod
    def write(self, source: Source, path: Path) -> list[str]:
        """Writes the model to an empty folder, or to a file.

        Returns:
            Sentences about what is left out.

        Raises:
            ValueError: the target cannot hold the model; the sentence says what would be lost.
        """

    @abstractmethod
    def reload(self, source: Source, path: Path) -> Reloaded:
        """Loads what was written, with the target's own library."""

    @abstractmethod
    def program(self, source: Source, path: str) -> str:
        """Returns a program for the card that loads the export and uses it."""

    def facts(self, source: Source, path: Path) -> list[tuple[str, str]]:
        """Returns rows about this export for the card: what, how much."""
        return []


def check_packages(target: Target) -> None:
    """Refuses a target whose packages are not installed."""
    missing = [
        pip for name, pip in target.packages.items() if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ValueError(
            f"--to {target.name} needs {' and '.join(missing)}: pip install {' '.join(missing)}, "
            "or pip install -e '.[export]' in Counterpoint's folder"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Turns off transformers' progress bars and advice, which are about its own models."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
