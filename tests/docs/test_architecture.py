"""The tour of the code names classes where they are, and files in the order of their imports."""

import re

from doc_pages import DOCS, ROOT

PAGE = (DOCS / "architecture.md").read_text()
NUMBERED = re.compile(r"^\d+\. `([\w/.]+\.py)`", re.MULTILINE)


def section(title):
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_base_classes_are_in_the_files_that_the_table_names():
    rows = [row for row in section("Where something new goes").splitlines() if row[:2] == "| "]
    derived = [(row.split("|")[1].strip(), row.split("|")[2]) for row in rows[2:]]
    assert len(derived) >= 11
    for what, bases in derived:
        found = re.findall(r"((?:`\w+`(?:, )?)+) \(`([\w/]+\.py)`\)", bases)
        for names, path in found:
            for name in re.findall(r"\w+", names):
                assert f"class {name}" in (ROOT / path).read_text(), (what, name, path)
        assert found or "data/" in bases or "none yet" in bases, what


def test_files_to_imitate_exist():
    table = section("Where something new goes")
    named = re.findall(r"`((?:losses|models|train)/[\w/]+\.py)`", table)
    assert len(named) >= 18
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_a_file_on_the_way_to_infonce_is_imported_by_one_before_it():
    path = NUMBERED.findall(section("One loss"))
    assert len(path) <= 10 and path[0] == "train/module.py"
    for index, file in enumerate(path[1:], 1):
        stem = file.removesuffix(".py").rpartition("/")[2]
        before = "".join((ROOT / earlier).read_text() for earlier in path[:index])
        # The objective holds terms; which ones, the run file says.
        named = re.search(rf"\b{stem} import |import .*\b{stem}\b", before)
        assert file == "losses/infonce.py" or named, file


def test_a_bug_in_resume_is_in_few_files():
    files = NUMBERED.findall(section("A bug in resume"))
    assert 3 <= len(files) <= 6
