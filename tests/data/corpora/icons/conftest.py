"""A folder of small made-up icon sets in place of the registry's packages."""

import hashlib
import io
import json
import tarfile

import pytest

from counterpoint.data.corpora.icons import sets

TRAINING = [f"plain-{letter}" for letter in "abcdef"]
HELD_OUT = ["shift-x", "shift-y"]
CONCEPTS = 40
VERSION = "1.0.0"


def body(concept: int, group: int, style: str) -> str:
    """A drawing that no other concept, set or style has: a bar of its own size and place."""
    left, height = 1 + concept % 10 * 2, 3 + concept // 10 * 4
    fill = "#00f" if group >= len(TRAINING) else "currentColor"
    hole = '<circle cx="20" cy="20" r="3" fill="#fff"/>' if style else ""
    return (
        f'<path fill="{fill}" d="M{left} 1h2v{height}h-2zM1 22h{2 + group * 2}v1H1z"/>{hole}'
        f'<circle cx="20" cy="20" r="2" fill="{fill}"/>'
    )


def package(name: str) -> dict[str, dict]:
    """The files of one set: each concept in two styles, aliases, and what is left out.

    Concept 3 is also called "other-word", which names pictures of three sets; "traffic-light" ends
    like a style; one icon is withdrawn, one alias mirrors.
    """
    group = [*TRAINING, *HELD_OUT].index(name)
    icons = {}
    for concept in range(CONCEPTS):
        # The rarer a concept the fewer sets have it: 0..7 are in all, 32..39 in two.
        if concept >= 8 and group < len(TRAINING) and group > 5 - concept // 8:
            continue
        icons[f"thing-{concept}"] = {"body": body(concept, group, "")}
        icons[f"thing-{concept}-bold"] = {"body": body(concept, group, "bold")}
    icons["traffic-light"] = {"body": body(39, group, "") + '<path d="M0 0h1v1H0z"/>'}
    icons["gone"] = {"body": '<path d="M0 0h9v9H0z"/>', "hidden": True}
    aliases = {
        "mirrored": {"parent": "thing-0", "hFlip": True},
        "gone-too": {"parent": "gone"},
        "item-5": {"parent": "thing-5"},
    }
    if group < 3:
        aliases["other-word"] = {"parent": "thing-3"}
    return {
        "icons": {"prefix": name, "icons": icons, "aliases": aliases, "width": 24, "height": 24},
        "info": {
            "name": name.title(),
            "author": {"name": f"Author of {name}", "url": "https://example.org/author"},
            "license": {"spdx": "MIT", "url": "https://example.org/licence"},
        },
        "metadata": {
            "suffixes": {"": "Regular", "bold": "Bold", "light": "Light"},
            "categories": {"Things": ["thing-0", "thing-1"], "Also": ["thing-1"]},
        },
    }


def packed(files: dict[str, dict]) -> bytes:
    """An npm package with these JSON files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A folder with the packages of the made-up sets, which take the place of the real ones."""
    folder = tmp_path_factory.mktemp("registry")
    table = {}
    for name in [*TRAINING, *HELD_OUT]:
        data = packed(package(name))
        (folder / f"iconify-json-{name}-{VERSION}.tgz").write_bytes(data)
        table[name] = sets.Package(VERSION, hashlib.sha256(data).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in table.items():
            patch.setitem(sets.SETS, name, entry)
        yield folder
