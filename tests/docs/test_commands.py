"""Every command line and every key in README and the documentation is one that the parsers take.

The commands run up to the point where their arguments are parsed; `fit`, `embed` and `launch` go
on into the real parser of run files, which reads the files that the command names.
"""

import argparse
import contextlib
import io
import re
import shlex
import shutil
from unittest import mock

import pytest
import yaml
from doc_pages import ROOT, blocks, command_lines, counterpoint, inline, name, pages

from counterpoint.launch import cli
from counterpoint.launch.arguments import Arguments
from counterpoint.launch.config import fit_arguments
from counterpoint.launch.config import packaged as paths
from counterpoint.launch.config import parser as run_config

PAGES = [page for page in pages() if page.suffix == ".md"]
# What stands for something else: a word of a command line, or a part of one.
STANDS_FOR = {
    "RUN": "emoji_clip",
    "RUN_DIR": "runs/emoji_clip",
    "SLOT": "data",
    "STORE": "store",
    "CLUSTERS": "clusters",
    "FILE.safetensors": "file.safetensors",
    "emoji_images_apart_short": "emoji_clip_short",  # the run that CONTRIBUTING.md adds
}
SLOTS = (
    *("trainer", "data", "model", "objective", "optim", "grad_clip", "guard", "phases", "teachers"),
    *("ema", "evaluation", "checkpoint", "watch", "trace"),
)
# Mappings whose keys are names that a user chooses.
NAMED = {"phases", "teachers", "objective.terms", "objective.scalars", "objective.weights"}
NAMED |= {f"data.{name}" for name in ("sources", "views", "texts", "sidecars")}
# `ema.image` is a feature and no key.
KEY = re.compile(
    rf"-{{0,2}}((?!ema\.(?:image|text|logit))(?:{'|'.join(SLOTS)})\.[\w.]+)(?:[ =].*)?"
)
# Runs that together have every key: slots and mappings that are empty by default are filled.
RUNS = [
    ["--config", str(ROOT / "configs" / "run" / "emoji" / "emoji_aclip_short.yaml")],
    ["--config", str(ROOT / "configs" / "run" / "distillation" / "distill_crd.yaml")],
    [
        *["--config", str(ROOT / "configs" / "run" / "emoji" / "emoji_siglip.yaml")],
        *[
            "--grad_clip",
            str(ROOT / "configs" / "grad_clip" / "zclip.yaml"),
            "--guard.spikes.z",
            "6",
        ],
        *["--data", str(ROOT / "configs" / "data" / "remote.yaml")],
        *["--data.sources", "{web: {share: 1}}", "--data.texts", "{long: {caption: [txt]}}"],
    ],
]


class Parsed(Exception):
    """The arguments of a command were accepted."""


def commands(page):
    """The arguments of each call of counterpoint on a page, in the order of the page."""
    for block in blocks(page, "", "sh", "bash", "dockerfile"):
        yield from filter(None, map(counterpoint, command_lines(block.text)))
    for text in inline(page):
        # `counterpoint fit` alone is a name; what ends in an ellipsis is no whole command.
        if " " in text and "..." not in text:
            words = counterpoint(shlex.split(text))
            if words and len(words) > 1 + (words[0] in ("data", "launch")):
                yield words


@pytest.fixture(scope="module")
def parser():
    return run_config.make_parser()


@pytest.fixture
def project(tmp_path, monkeypatch, parser):
    """A folder with what commands name: packaged files, a run, a configuration of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_config, "make_parser", lambda *args, **kwargs: parser)
    # The lists that earlier commands of a page write are not there.
    monkeypatch.setattr(fit_arguments, "check_keep_lists", lambda written: None)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run = paths.find("emoji_clip")
    (tmp_path / "icons").mkdir()
    (tmp_path / "icons/classes.txt").write_text("arrow\nstar\n")
    (tmp_path / "names.txt").write_text("arrow\nstar\n")
    for page in PAGES:  # run files that a page shows
        for block in blocks(page, "yaml"):
            if file := re.match(r"# (\w+\.yaml)\n", block.text):
                (tmp_path / file[1]).write_text(block.text)
    # Keep-lists have to be there when a run is configured.
    for folder in ("unique", "dynamics", "curated/clip_score"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "keep.parquet").touch()
    for folder in ("emoji_clip", "smoke", "first"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        shutil.copy(run, tmp_path / "runs" / folder / "config.yaml")
        content = yaml.safe_load(run.read_text())
        for slot, value in content.items():
            if isinstance(value, str) and value.startswith("../"):
                content[slot] = str((run.parent / value).resolve())
        (tmp_path / "runs" / folder / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def accept(words):
    """Runs a command until its arguments are parsed.

    Raises:
        Parsed: they are good.
    """

    def stop_after(owner, function):
        original = getattr(owner, function)

        def run(*args, **kwargs):
            original(*args, **kwargs)
            raise Parsed

        return mock.patch.object(owner, function, run)

    ours, argparses = (stop_after(x, "parse_args") for x in (Arguments, argparse.ArgumentParser))
    with ours, argparses, stop_after(run_config, "parse_written"):
        return cli.main(words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_parse(page, project):
    for words in commands(page):
        words = [STANDS_FOR.get(word, word) for word in words]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = accept(words)
            except Parsed:
                continue
            except SystemExit as end:
                status = end.code
        # What only shows something ends with success.
        shown = [
            word for word in words if re.search("^--(help|version|print_config)$|[.]help$", word)
        ]
        assert shown and not status, f"counterpoint {' '.join(words)}: {errors.getvalue()}"


@pytest.fixture(scope="module")
def keys(parser):
    """Every key that a run can have, with `*` for names of the user's own."""

    def keys_of(tree, above):
        for key, value in tree.items():
            dotted = f"{above}.{'*' if above in NAMED else key}".lstrip(".")
            yield dotted
            if isinstance(value, dict):
                yield from keys_of(value, dotted)

    configs = [run_config.plain(parser, run_config.parse(parser, argv)) for argv in RUNS]
    return {key for config in configs for key in keys_of(config, "")}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_exist(page, keys):
    for text in inline(page):
        match = KEY.fullmatch(text)
        if not match:
            continue
        parts = match[1].split(".")
        for above in (parts[:1], parts[:2]):
            if ".".join(above) in NAMED and len(parts) > len(above):
                parts[len(above)] = "*"
        # Arguments of a class can be named without `init_args`.
        known = keys | {key.replace(".init_args", "") for key in keys}
        assert ".".join(parts) in known, text
