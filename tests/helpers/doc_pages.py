"""The pages of the documentation as tests read them: blocks of code, commands, inline code, links.

A block is marked by an HTML comment on the line above its fence: `<!-- needs: GPUs -->` says what
it cannot be run without.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block of code: its language, its text, and the mark above it."""

    language: str
    text: str
    mark: str


def pages() -> list[Path]:
    """Every page that is written by hand, the rendered catalogue included."""
    paths = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(DOCS / "methods").glob("*.yaml")]
    return sorted(path for path in paths if DOCS / "reference" not in path.parents)


def name(path: Path) -> str:
    """A page's id in tests."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[Block]:
    """The blocks of a page, of these languages or of all."""
    all_blocks = [
        Block(language, text, mark) for mark, language, text in FENCE.findall(path.read_text())
    ]
    return [block for block in all_blocks if not languages or block.language in languages]


def prose(path: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", path.read_text())


def inline(path: Path) -> list[str]:
    """What stands in backticks in the text, each on one line."""
    return [" ".join(text.split()) for text in INLINE.findall(prose(path))]


def command_lines(text: str) -> list[list[str]]:
    """The command lines of a block that is no program: words, without comments."""
    lines = text.replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def counterpoint(words: list[str]) -> list[str] | None:
    """The arguments of `counterpoint` in a command line, or None where it is not called.

    It may stand behind settings of the environment, and behind torchrun, as a module.
    """
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words and words[0].rpartition("/")[2] == "counterpoint":
        return words[1:]
    if "counterpoint.launch.cli" in words:
        return words[words.index("counterpoint.launch.cli") + 1 :]
    return None


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown's toc extension and GitHub make them."""
    texts = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", text) for text in HEADING.findall(prose(path))]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text.lower()).strip()) for text in texts}
