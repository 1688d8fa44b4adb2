"""The icons of one set: drawing, name, style, concept, captions.

In: the content of a package. Out: a list of `Icon`, sorted by name. Names stay as they are, with
numbers, suffixes and slips: they make the corpus a small dirty web. An alias, another name for the
same drawing, is an icon of its own: the same picture with another caption, as on the web. Left out,
and counted, are icons that the set has withdrawn (`hidden`), their aliases, and those that turn or
mirror the drawing.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any

# Words that are styles in every set, whether it declares them or not.
STYLES = ("outline", "outlined", "filled", "fill", "solid", "duotone")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)-skin-tone\b")
DEFAULT_SIZE = 16.0  # of a drawing that gives none

# Dark or saturated, so that each is clear on white: CSS names and values.
COLORS = {
    "black": "#000000",
    "gray": "#5f6368",
    "brown": "#795022",
    "red": "#d01716",
    "orange": "#ef6c00",
    "olive": "#7a7a00",
    "green": "#0a7e07",
    "teal": "#00796b",
    "blue": "#1a5fd0",
    "navy": "#10206f",
    "purple": "#7b1fa2",
    "pink": "#d81b78",
}
MULTICOLOR = "multicolor"


@dataclasses.dataclass(frozen=True)
class Icon:
    """One name of one drawing.

    Attributes:
        set: the set's name.
        name: the icon's name, such as "home-outline".
        drawing: the name of the drawing: the icon's own, or the one that it is an alias of.
        body: SVG elements.
        box: left, top, width and height of the drawing.
        style: such as "outline" or "bold duotone"; "" where the name tells none.
        base: the name without its style, with spaces.
        categories: the set's own, sorted.
    """

    set: str
    name: str
    drawing: str
    body: str
    box: tuple[float, float, float, float]
    style: str
    base: str
    categories: tuple[str, ...]

    @property
    def key(self) -> str:
        """The sample's key, `SET:NAME`, which survives any re-sharding."""
        return f"{self.set}:{self.name}"

    @property
    def concept(self) -> str:
        """What is shown: the base without skin tone, in lower case; equal in all sets."""
        return self.base.lower()

    @property
    def caption(self) -> str:
        """The name with spaces."""
        return spaced(self.name)

    @property
    def is_colored(self) -> bool:
        """Whether the drawing has colours of its own."""
        return "currentColor" not in self.body

    @property
    def picture(self) -> bytes:
        """A digest of the drawing: equal for all names of one picture, in all sets."""
        return hashlib.blake2b(f"{self.box}{self.body}".encode(), digest_size=16).digest()


def load_icons(content: Mapping[str, Mapping[str, Any]]) -> tuple[list[Icon], dict[str, int]]:
    """Returns the icons of a package, and how many of its names are left out, by reason."""
    icons, metadata = content["icons"], content["metadata"]
    drawings = {n: icon for n, icon in icons["icons"].items() if not icon.get("hidden")}
    aliases = icons.get("aliases", {})
    plain = {
        name: alias["parent"]
        for name, alias in aliases.items()
        if alias.keys() <= {"parent"} and alias["parent"] in drawings
    }
    names = {name: name for name in drawings} | plain
    styled = Styles(names, metadata)
    categories: dict[str, set[str]] = {}
    for category, members in metadata.get("categories", {}).items():
        for name in members:
            categories.setdefault(name, set()).add(category)
    loaded = []
    for name, drawing in sorted(names.items()):
        icon = drawings[drawing]
        base, style = styled.split(name)
        left, top = icon.get("left", 0), icon.get("top", 0)
        size = [icon.get(k) or icons.get(k) or DEFAULT_SIZE for k in ("width", "height")]
        found = categories.get(name) or categories.get(drawing) or ()
        loaded.append(
            Icon(
                set=icons["prefix"],
                name=name,
                drawing=drawing,
                body=icon["body"],
                box=(float(left), float(top), float(size[0]), float(size[1])),
                style=style,
                base=base,
                categories=tuple(sorted(found)),
            )
        )
    left_out = {
        "withdrawn": len(icons["icons"]) - len(drawings),
        "aliases": len(aliases) - len(plain),
    }
    return loaded, left_out


class Styles:
    """Tells style from base in the names of one set.

    Args:
        names: all names of the set.
        metadata: with the set's `prefixes` and `suffixes`: word -> title; the suffix "" is the
            style of names without one.
    """

    def __init__(self, names: Collection[str], metadata: Mapping[str, Any]):
        self.names = names
        self.prefixes = _longest_first(metadata.get("prefixes"))
        self.suffixes = _longest_first(metadata.get("suffixes"))

    def split(self, name: str) -> tuple[str, str]:
        """Returns the base, with spaces and without skin tone, and the style."""
        base, styles = name, []
        prefix = next((word for word in self.prefixes if base.startswith(f"{word}-")), "")
        if prefix:
            base = base.removeprefix(f"{prefix}-")
            styles.append(self.prefixes[prefix])
        suffix = next((word for word in self.suffixes if self._ends_with(base, word)), "")
        if suffix:
            base = base.removesuffix(f"-{suffix}")
            styles.append(self.suffixes[suffix])
        words = [word for word in self._without_tone(base).split("-") if word]
        while len(words) > 1 and words[-1] in STYLES:
            styles.append(words.pop())
        if not styles and "" in self.suffixes:
            styles.append(self.suffixes[""])
        return " ".join(words), " ".join(styles).lower()

    def _ends_with(self, name: str, suffix: str) -> bool:
        """Whether a name has a suffix as its style.

        Where plain names are a style, too, a suffix is one only of a name that also stands plain:
        "traffic-light" is no light "traffic".
        """
        base = name.removesuffix(f"-{suffix}")
        return base not in ("", name) and ("" not in self.suffixes or base in self.names)

    def _without_tone(self, name: str) -> str:
        """Removes a skin tone: "-dark-skin-tone", or "-dark" where the set has all five tones."""
        name = TONE.sub("", name)
        for tone in sorted(TONES, key=len, reverse=True):
            base = name.removesuffix(f"-{tone}")
            if base != name and base in self.names:
                return base if all(f"{base}-{tone}" in self.names for tone in TONES) else name
        return name


def _longest_first(titles: Mapping[str, str] | None) -> dict[str, str]:
    return dict(sorted((titles or {}).items(), key=lambda item: (-len(item[0]), item[0])))


def spaced(name: str) -> str:
    """Returns "home outline" for "home-outline"."""
    return " ".join(name.replace("-", " ").split())


def describe(icon: Icon, color: str) -> str:
    """Returns the template's caption, such as "a red outline icon of home"."""
    words = " ".join([color, *icon.style.split(), "icon of", icon.base])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
