"""Pictures with an emoji in one of nine cells of 24 pixels, its box and its name.

Needs the packages of the extra `emoji`. Which emoji, and where, follows from a picture's number.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from counterpoint.data.corpora.emoji.draw import load_styles
from counterpoint.data.corpora.emoji.names import load_names
from counterpoint.data.corpora.shards import to_json, write_tars

GRID, CELL, KINDS = 3, 24, 12


def drawings() -> dict[str, Image.Image]:
    """Emoji of 24 pixels by name, evenly from all of one word."""
    (style,) = [style for style in load_styles() if style.name == "twemoji"]
    found = {e.caption: style.find(e.characters) for e in load_names() if e.caption.isalpha()}
    files = [(name, path) for name, path in sorted(found.items()) if path]
    images = {}
    for name, path in files[:: len(files) // KINDS][:KINDS]:
        drawn = Image.open(path).convert("RGBA").resize((CELL, CELL), Image.Resampling.BOX)
        images[name] = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
    return images


def write_collages(folder: Path, numbers: range) -> Path:
    """Writes a shard of the pictures of these numbers."""
    images = drawings()

    def sample(number):
        rng = np.random.default_rng(number)
        row, column = divmod(int(rng.integers(GRID * GRID)), GRID)
        name = str(rng.choice(sorted(images)))
        picture, data = Image.new("RGB", (GRID * CELL, GRID * CELL), "white"), io.BytesIO()
        picture.paste(images[name].convert("RGB"), (column * CELL, row * CELL))
        picture.save(data, "PNG")
        box = [edge / GRID for edge in (column, row, column + 1, row + 1)]
        key = f"{number:06d}"
        meta = to_json({"key": key, "regions": [{"box": box, "text": name}]})
        return {"__key__": key, "png": data.getvalue(), "txt": name.encode(), "json": meta}

    folder.mkdir(parents=True)
    write_tars(folder, [map(sample, numbers)])
    return folder / "00000.tar"
