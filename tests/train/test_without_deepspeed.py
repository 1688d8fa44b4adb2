"""DeepSpeed is an extra: nothing imports it before a zero strategy is asked for."""

import json
from pathlib import Path

from processes import run_program

ROOT = Path(__file__).resolve().parents[2]
# Of the distribution; what else lies in the clone is none of it.
FOLDERS = ("losses", "models", "data", "train", "launch")
WITHOUT = f"""
import importlib, json, sys
from pathlib import Path

assert "deepspeed" not in sys.modules, "what runs import at their start imports it"
sys.modules["deepspeed"] = None  # any import of it is an ImportError now
root = Path({str(ROOT)!r})
files = [path for folder in {FOLDERS!r} for path in sorted((root / folder).rglob("*.py"))]
names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files]
names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module("counterpoint." + name)

from counterpoint.launch.config.parser import make_parser, parse
from counterpoint.train.strategies.choose import choose_strategy

run = str(root / "configs" / "run" / "emoji" / "emoji_clip.yaml")
parse(make_parser(), ["--config", run, "--trainer.strategy", "zero2"])
told = []
for name in ("fsdp2", "zero1", "zero2", "zero3_offload"):
    try:
        told.append(type(choose_strategy(name)).__name__)
    except ValueError as error:
        told.append(str(error))
print(json.dumps([len(names), told]))
"""


def test_everything_imports_and_zero_says_what_is_missing(tmp_path):
    status, printed = run_program(WITHOUT, tmp_path / "log")
    assert status == 0, printed
    num_modules, told = json.loads(printed.splitlines()[-1])
    assert num_modules > 150
    assert told[0] == "Fsdp2"
    for name, text in zip(("zero1", "zero2", "zero3_offload"), told[1:], strict=True):
        assert f"trainer.strategy={name} needs DeepSpeed" in text
        assert 'pip install -e ".[deepspeed]"' in text
