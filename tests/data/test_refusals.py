"""Which errors are messages to the user: those of our own code, wherever it is installed."""

import importlib.util

import pytest

from counterpoint.data import refusals

INSTALLED = ".venv/lib/python3/site-packages"


@pytest.mark.parametrize(
    ("root", "raised_in", "is_ours"),
    [
        ("checkout", "checkout/data/module.py", True),
        ("checkout", f"checkout/{INSTALLED}/library/module.py", False),
        ("checkout", f"checkout/{INSTALLED.replace('.venv', 'env')}/library/module.py", False),
        (f"{INSTALLED}/counterpoint", f"{INSTALLED}/counterpoint/data/module.py", True),
        (f"{INSTALLED}/counterpoint", f"{INSTALLED}/library/module.py", False),
    ],
)
def test_a_refusal_is_raised_by_our_own_code(tmp_path, monkeypatch, root, raised_in, is_ours):
    file = tmp_path / raised_in
    file.parent.mkdir(parents=True)
    file.write_text("def refuse(kind):\n    raise kind('no')\n")
    spec = importlib.util.spec_from_file_location("module", file)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    monkeypatch.setattr(refusals, "ROOT", (tmp_path / root).resolve())
    for kind, expected in ((ValueError, is_ours), (TypeError, False)):
        with pytest.raises(kind) as caught:
            module.refuse(kind)
        assert refusals.is_refusal(caught.value) is expected
