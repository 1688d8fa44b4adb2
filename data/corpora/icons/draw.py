"""An icon as the bytes of one PNG: 64 x 64, RGB on white, the same every time.

In: an icon. Out: the name of its colour, its SVG, the PNG.
"""

import io

from PIL import Image

from ...hashing import text_hash
from .names import COLORS, MULTICOLOR, Icon

SIZE = 64  # pixels


def choose_color(icon: Icon, seed: int) -> str:
    """Returns the name of the colour of an icon's drawing; "multicolor" if it has its own.

    It follows from the drawing, not from the name: all names of one drawing have the same bytes.
    """
    if icon.is_colored:
        return MULTICOLOR
    return list(COLORS)[text_hash(seed, "color", icon.set, icon.drawing) % len(COLORS)]


def to_svg(icon: Icon, color: str) -> str:
    """Returns the SVG of an icon, in the middle of a square."""
    body = icon.body.replace("currentColor", COLORS.get(color, "#000000"))
    box = " ".join(f"{number:g}" for number in icon.box)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}">{body}</svg>'
    )


def draw_svg(svg: str) -> bytes | None:
    """Draws an SVG of `to_svg`.

    Returns:
        The PNG file's bytes; None for what cannot be drawn.
    """
    import resvg_py

    try:
        # No system fonts: the drawings must not depend on the machine.
        data = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True, background="#ffffff"
        )
    except ValueError:
        return None
    with Image.open(io.BytesIO(data)) as file_image:
        image = file_image.convert("RGB")
    assert image.size == (SIZE, SIZE), image.size
    target = io.BytesIO()
    image.save(target, format="PNG", compress_level=6)
    return target.getvalue()
