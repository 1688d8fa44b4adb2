"""The tests that are marked `gpu`: a row for each that does not pass, and one of all.

In: files of tests in which the mark stands. Out: rows.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import LONGEST, Report

TESTS = Path(__file__).resolve().parents[2]


def measure(report: Report) -> None:
    """Runs the tests, each file in a process of its own."""
    marked = [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    for path in marked[:1] if report.scale == "tiny" else marked:
        report.measure(lambda path=path: outcome(path, report), file=str(path.relative_to(TESTS)))


def outcome(path: Path, report: Report) -> dict[str, Any]:
    """Returns how many tests of a file passed, and what the others said."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.xml"
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-n", "0"]
        options += [f"--junitxml={found}", "--import-mode=importlib", str(path)]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=TESTS.parent, capture_output=True, text=True, timeout=max(1.0, report.seconds_left),
        )  # fmt: skip
        if not found.exists():
            raise RuntimeError(f"pytest wrote nothing: {(done.stdout + done.stderr)[-LONGEST:]}")
        return counts(found)


def counts(found: Path) -> dict[str, Any]:
    """Returns the counts of pytest's XML, and the first line of what did not pass."""
    kinds: dict[str, dict[str, str]] = {"failure": {}, "error": {}, "skipped": {}}
    cases = list(ElementTree.parse(found).iter("testcase"))
    for case in cases:
        for result in case:
            if result.tag in kinds:
                kinds[result.tag][str(case.get("name"))] = str(result.get("message"))[:LONGEST]
    wrong = kinds["failure"] | kinds["error"]
    skipped = kinds["skipped"]
    return {
        "passed": len(cases) - len(wrong) - len(skipped),
        "not_passed": wrong,
        "skipped": skipped,
    }
