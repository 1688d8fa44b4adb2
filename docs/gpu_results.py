"""Renders what `make gpu` has measured: the page docs/reference/gpu.md.

In: `docs/results/gpu/DEVICE-DATE.json`. Out: Markdown, a section for each file, the newest first,
and a table for each piece; what no file has is said to be not measured yet.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "gpu"
HEAD = """# GPU results

What `make gpu` measured on one GPU ([how](../benchmarks.md#the-gpu-hour)), rendered from
`docs/results/gpu/`. Everything else that these pages say about speed on GPUs is computed or
counted, and says so."""
NOTHING = "not measured yet"
# Title and columns of each piece: a row's key and, after a colon, its form.
PIECES = {
    "tests": ("Tests marked `gpu`", "file passed:d not_passed skipped"),
    "losses": (
        "Losses against open_clip's",
        "batch:,d loss ours_ms:.2f open_clip_ms:.2f open_clip_bf16_ms:.2f ours_gib:.2f "
        "open_clip_gib:.2f ours_gradient_error:.1e open_clip_gradient_error:.1e "
        "open_clip_bf16_gradient_error:.1e",
    ),
    "step": (
        "Training steps against open_clip's",
        "model framework mask compile batch:,d ms:.1f pairs_per_s:,.0f gflop:.1f mfu:.1% gib:.1f",
    ),
    "loader": (
        "One GPU fed from JPEGs",
        "what side:d workers:d batch:,d images_per_s:,.0f images_per_s_a_core:,.0f "
        "pairs_per_s:,.0f data_wait:.1%",
    ),
    "emoji": (
        "A short emoji run against the CPU's",
        "device precision seconds:.1f compared early:.1e all:.1e last:.1e",
    ),
    "siglip": (
        "SigLIP with 131,072 pairs a step",
        "model batch:,d chunks:d ms:,.0f pairs_per_s:,.0f mfu:.1% gib:.1f",
    ),
}


def page(folder: Path = RESULTS) -> str:
    """Returns the page of all results in a folder."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stem[-10:], reverse=True)
    lines = [HEAD]
    for path in files:
        found = json.loads(path.read_text())
        lines += ["", f"## {path.stem}", "", described(found.get("machine", {}))]
        lines += pieces(found["pieces"])
    if not files:
        lines += ["", f"On GPUs: {NOTHING}."]
        lines += pieces({})
    return "\n".join(lines) + "\n"


def described(machine: Mapping[str, Any]) -> str:
    """Returns a sentence about the machine."""
    parts = [f"{name} {value}" for name, value in machine.items() if value is not None]
    return "; ".join(parts) + "."


def pieces(found: Mapping[str, Any]) -> Iterable[str]:
    """Yields the tables of one file; those of steps are one table."""
    for piece, (title, columns) in PIECES.items():
        parts = [part for name, part in found.items() if name.partition("-")[0] == piece]
        yield from ("", f"### {title}", "")
        rows = [row for part in parts for row in part.get("rows", [])]
        yield from table(rows, columns) if rows else [f"{NOTHING.capitalize()}."]
        failed = [part["failed"] for part in parts if "failed" in part]
        tiny = [part for part in parts if part.get("scale", "full") != "full"]
        yield from (f"\nEnded early: {escaped(sentence)}" for sentence in failed)
        yield from ["\nAt a tiny scale, which says nothing about speed."] if tiny else []


def table(rows: list[Mapping[str, Any]], written: str) -> Iterable[str]:
    """Yields a table of the columns that a row has a value for; what failed stands behind."""
    columns = {key: form for key, _, form in (word.partition(":") for word in written.split())}
    shown = {key: form for key, form in columns.items() if any(key in row for row in rows)}
    notes = ["failed"] if any(noted(row) for row in rows) else []
    yield "| " + " | ".join([*(key.replace("_", " ") for key in shown), *notes]) + " |"
    rules = ["---:" if form else "---" for form in shown.values()]
    yield "| " + " | ".join([*rules, *("---" for _ in notes)]) + " |"
    for row in rows:
        cells = [cell(row.get(key), form) for key, form in shown.items()]
        yield "| " + " | ".join([*cells, *([noted(row)] if notes else [])]) + " |"


def cell(value: Any, form: str) -> str:
    """Returns a value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return escaped("; ".join(f"{name}: {text}" for name, text in value.items()))
    return format(value, form) if form and not isinstance(value, str) else escaped(str(value))


def noted(row: Mapping[str, Any]) -> str:
    """Returns what a row says has failed, of either side."""
    failed = [f"{k.removesuffix('failed')}{v}" for k, v in row.items() if k.endswith("failed")]
    return escaped("; ".join(failed))


def escaped(text: str) -> str:
    """Returns a text that ends no cell of a table and begins no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")
