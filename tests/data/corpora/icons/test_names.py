"""Names of real icons: which part is style, which concept."""

import pytest

from counterpoint.data.corpora.icons.names import load_icons

WEIGHTS = {"": "Regular", "bold": "Bold", "light": "Light", "fill": "Fill"}
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SHAPES = {"": "Regular", "rounded": "Rounded", "outline": "Outline",
          "outline-rounded": "Outline Rounded"}  # fmt: skip


def load(names, prefixes=None, suffixes=None, aliases=None):
    """name -> icon of a set with these names."""
    icons = {
        "prefix": "made",
        "icons": {name: {"body": f"<path d='{i}'/>"} for i, name in enumerate(names)},
        "aliases": aliases or {},
    }
    metadata = {"prefixes": prefixes, "suffixes": suffixes}
    return {icon.name: icon for icon in load_icons({"icons": icons, "metadata": metadata})[0]}


@pytest.mark.parametrize(
    ("name", "others", "titles", "concept", "style"),
    [
        ("house-bold", ["house"], {"suffixes": WEIGHTS}, "house", "bold"),
        ("house", [], {"suffixes": WEIGHTS}, "house", "regular"),
        ("traffic-light", [], {"suffixes": WEIGHTS}, "traffic light", "regular"),
        ("traffic-light-light", ["traffic-light"], {"suffixes": WEIGHTS}, "traffic light", "light"),
        ("sun-outline-rounded", ["sun", "sun-outline"], {"suffixes": SHAPES}, "sun",
         "outline rounded"),
        ("add-line", [], {"suffixes": {"line": "Line", "fill": "Fill"}}, "add", "line"),
        ("twotone-wifi-1-bar", [], {"prefixes": {"twotone": "Two-Tone"}}, "wifi 1 bar", "two-tone"),
        ("account-box-outline", [], {}, "account box", "outline"),
        ("text--fill", [], {}, "text", "fill"),
        ("outline", [], {}, "outline", ""),
        ("abstract-001", [], {}, "abstract 001", ""),
        ("boy-medium-dark-skin-tone", [], {}, "boy", ""),
        ("kiss-man-man-dark-skin-tone-light-skin-tone", [], {}, "kiss man man", ""),
        ("boy-medium-dark", ["boy", *(f"boy-{tone}" for tone in TONES)], {}, "boy", ""),
        ("moon-dark", ["moon", "moon-light"], {}, "moon dark", ""),
    ],
)  # fmt: skip
def test_style_and_concept(name, others, titles, concept, style):
    icon = load([name, *others], **titles)[name]
    assert (icon.concept, icon.style) == (concept, style)


def test_a_drawing_has_its_own_size_or_that_of_the_set():
    content = {
        "icons": {
            "prefix": "made",
            "height": 20,
            "icons": {"wide": {"body": "a", "width": 60, "left": -3}, "plain": {"body": "a"}},
        },
        "metadata": {},
    }
    icons = {icon.name: icon for icon in load_icons(content)[0]}
    # A side that neither gives is 16.
    assert icons["wide"].box == (-3, 0, 60, 20) and icons["plain"].box == (0, 0, 16, 20)
    assert icons["wide"].picture != icons["plain"].picture


def test_an_alias_shares_the_picture_but_not_the_name():
    icons = load(["home", "work"], aliases={"house": {"parent": "home"}})
    assert icons["house"].picture == icons["home"].picture != icons["work"].picture
    assert (icons["house"].concept, icons["house"].drawing) == ("house", "home")
