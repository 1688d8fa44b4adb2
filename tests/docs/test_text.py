"""What pages name exists: links, anchors, files; programs compile; nothing promises a package."""

import re

import pytest
import yaml
from doc_pages import DOCS, LINK, ROOT, anchors, blocks, inline, name, pages, prose

PAGES = pytest.mark.parametrize("page", pages(), ids=name)
# Folders of this repository; `data/` and others are also names of users' folders.
EXAMPLE = "images_apart"  # the loss that CONTRIBUTING.md adds
OURS = re.compile(r"(configs|losses|docs|launch|train|models|data|tests)/[\w./*{},-]*")


@PAGES
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if (DOCS / "reference") in target.parents:  # made by docs/generate.py; see test_site.py
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@PAGES
def test_files_that_are_named_exist(page):
    for text in inline(page):
        if not OURS.fullmatch(text) or EXAMPLE in text:
            continue
        if re.search(r"\.\w+$", text) or text.endswith("/"):
            choices = re.search(r"\{(.*)\}", text)
            for choice in choices[1].split(",") if choices else [""]:
                path = re.sub(r"\{.*\}", choice, text)
                assert list(ROOT.glob(path)), path


@PAGES
def test_programs_compile_and_settings_are_yaml(page):
    for block in blocks(page, "python"):
        compile(block.text, name(page), "exec")
    for block in blocks(page, "yaml"):
        if "--8<--" not in block.text:
            assert isinstance(yaml.safe_load(block.text), dict)


@PAGES
def test_the_package_index_is_not_promised(page):
    """The name on the index is not ours: who owns it would own those users' machines."""
    assert not re.search(r"pip install ['\"]?counterpoint", page.read_text())


def test_every_page_is_in_the_navigation():
    def leaves(tree):
        if isinstance(tree, str):
            return {tree}
        return set().union(*map(leaves, tree.values() if isinstance(tree, dict) else tree))

    named = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {page.relative_to(DOCS).as_posix() for page in pages() if DOCS in page.parents}
    written -= {text for text in written if text.startswith("methods/")}
    assert {text for text in named if not text.startswith("reference/")} == written


def test_each_flag_of_open_clip_is_explained():
    from importlib import resources

    source = resources.files("open_clip_train").joinpath("params.py").read_text()
    flags = set(re.findall(r"""add_argument\(\s*["'](--[\w-]+)""", source))
    page = DOCS / "howto" / "from_open_clip.md"
    rows = [line for line in prose(page).splitlines() if line.startswith("| `--")]
    explained = {flag for row in rows for flag in re.findall(r"`(--[\w-]+)`", row.split("|")[1])}
    assert len(flags) > 50 and explained == flags
