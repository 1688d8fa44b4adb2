"""What the README names exists."""

import re
from pathlib import Path

from counterpoint.launch.cli import COMMANDS
from counterpoint.launch.paths import find_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()


def test_commands_and_configs():
    named = set(re.findall(r"^(?:`?)counterpoint (\w+)", TEXT, re.MULTILINE))
    assert {"fit", "evaluate", "report", "data", "init"} <= named <= COMMANDS.keys()
    for name in re.findall(r"--config (\w+)$", TEXT, re.MULTILINE):
        assert find_config(name).is_file()


def test_make_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"make ([\w-]+)", TEXT)) <= targets


def test_links():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    for path in re.findall(r"`((?:configs|losses|docs|launch)/[\w./]+)`", TEXT):
        assert (ROOT / path).exists(), path
