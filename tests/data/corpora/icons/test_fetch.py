"""Packages: fetched with npm, checked, kept; a npm of the test's own stands for the registry."""

import os
import subprocess

import pytest

from counterpoint.data.corpora.build import silent
from counterpoint.data.corpora.icons import fetch
from counterpoint.data.corpora.icons.fetch import fetch_sets, find_npm, read_package

PACKAGE = "iconify-json-plain-a-1.0.0.tgz"


def install_npm(folder, script):
    """Puts a program called npm into a folder, first in PATH."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def test_a_package_is_fetched_once_without_scripts(registry, tmp_path, monkeypatch):
    script = f'echo "$@" >> {tmp_path}/calls; cp {registry}/{PACKAGE} .'
    monkeypatch.setenv("PATH", install_npm(tmp_path / "bin", script))
    cache = tmp_path / "cache"
    for _ in range(2):
        paths = fetch_sets(["plain-a"], cache, silent)
    assert paths == {"plain-a": cache / PACKAGE}
    assert [path.name for path in cache.iterdir()] == [PACKAGE]
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith("pack @iconify-json/plain-a@1.0.0 ") and "--ignore-scripts" in call
    assert read_package(paths["plain-a"])["info"]["name"] == "Plain-A"
    # A copy that was cut off is fetched again.
    (cache / PACKAGE).write_bytes((cache / PACKAGE).read_bytes()[:99])
    fetch_sets(["plain-a"], cache, silent)
    assert (cache / PACKAGE).read_bytes() == (registry / PACKAGE).read_bytes()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'npm error code E404' >&2; exit 1", r"could not fetch @iconify-json/plain-a@1.0.0 "
         rf"\(npm error code E404\).*or put {PACKAGE} into"),
        ("exit 0", "could not fetch.*no message"),
        (f"echo another > {PACKAGE}", "another @iconify-json/plain-a@1.0.0 than the pinned one"),
    ],
)  # fmt: skip
def test_a_package_that_cannot_be_had_is_one_sentence(
    registry, tmp_path, monkeypatch, script, message
):
    monkeypatch.setenv("PATH", install_npm(tmp_path / "bin", script))
    with pytest.raises(ValueError, match=message) as caught:
        fetch_sets(["plain-a"], tmp_path / "cache", silent)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_npm_is_that_of_the_package_where_the_user_has_none(monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = subprocess.run([*find_npm(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout[0].isdigit()
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs npm, which is not on PATH.*\.\[icons\]"):
        find_npm()
