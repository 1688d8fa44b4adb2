"""House rules about the files themselves: their length, their names, and what they may not name."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
BANNED_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
# Folders of one machine: home directories, scratch space, work trees.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:root|home/\w+|Users/\w+|work|tmp|mnt|scratch|workspace)/[\w.-]+"
)


def tracked() -> list[Path]:
    """Returns the files git knows or would add; outside a clone the tests that need it skip."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git clone")
    return [path for line in done.stdout.splitlines() if (path := ROOT / line).is_file()]


def offending_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_no_file_is_too_long():
    code = [path for path in tracked() if path.suffix == ".py"]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in code}
    assert len(lengths) > 30
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_no_file_is_a_grab_bag():
    assert [path for path in tracked() if path.name in BANNED_NAMES] == []


def test_tests_are_no_package_and_conftests_are_tests():
    below = [path.relative_to(ROOT).as_posix() for path in tracked() if path.suffix == ".py"]
    assert [path for path in below if path.startswith("tests/") and "__init__" in path] == []
    conftests = [path for path in below if path.endswith("conftest.py")]
    assert "tests/conftest.py" in conftests
    assert all(path.startswith("tests/") for path in conftests)


def test_no_tracked_file_names_a_folder_of_one_machine():
    found = {}
    for path in tracked():
        if path != Path(__file__).resolve():
            text = path.read_bytes().decode("utf-8", errors="ignore")
            if lines := offending_lines(text):
                found[str(path.relative_to(ROOT))] = lines
    assert found == {}


def test_the_machine_path_pattern_finds_what_it_should():
    assert offending_lines("data in /home/ann/data\nROOT = '/tmp/main/x'\n(/tmp/w/run.py)")
    assert len(offending_lines("a /root/.cache b\n/tmp/x1/y\n/Users/ann/z")) == 3
    assert not offending_lines("see docs/tmp/plan, https://a.org/home/x/y, make PYTHON=/path/to/it")
