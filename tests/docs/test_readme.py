"""What the README shows is what is there."""

import ast
import inspect
import re
import textwrap

from doc_pages import ROOT, blocks

from counterpoint.launch.cli import COMMANDS
from counterpoint.launch.config.packaged import find
from counterpoint.train.module import ContrastiveModule

PAGE = ROOT / "README.md"
TEXT = PAGE.read_text()


def test_the_step_is_the_one_that_trains():
    (shown,) = blocks(PAGE, "python")
    step = ast.parse(textwrap.dedent(inspect.getsource(ContrastiveModule.training_step))).body[0]
    assert isinstance(step, ast.FunctionDef) and ast.get_docstring(step)
    step.body = step.body[1:]  # the docstring
    assert ast.dump(ast.parse(shown.text).body[0]) == ast.dump(step)
    assert len(shown.text.splitlines()) <= 11


def test_commands_and_configs():
    named = set(re.findall(r"^(?:`?)counterpoint (\w+)", TEXT, re.MULTILINE))
    assert {"fit", "evaluate", "report", "data", "init"} <= named <= COMMANDS.keys()
    for name in re.findall(r"--config (\w+)$", TEXT, re.MULTILINE):
        assert find(name).is_file()


def test_make_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"make ([\w-]+)", TEXT)) <= targets
