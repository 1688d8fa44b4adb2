"""docs/scaling.md: its tables against closed forms, the plan, and torch's fake process group."""

import re
from pathlib import Path

import pytest
import torch
from benchmarks.weak_scaling import (
    ROWS,
    STRATEGIES,
    WORLDS,
    byte_table,
    closed_forms,
    planned,
    time_table,
)

from counterpoint.launch.planning.collectives import LossCount, of_objective, of_strategy
from counterpoint.launch.planning.meta import on_device_meta
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
WIDTH = 512


def numbers(lines):
    """Rows of a table: names, and numbers without commas and signs of percentages."""
    cells = [[cell.strip(" `%") for cell in line.split("|")[1:-1]] for line in lines]
    return [
        [float(c.replace(",", "")) if re.fullmatch(r"[\d.,]+", c) else c for c in row]
        for row in cells
        if set(row) - {"---:", "---"}
    ]


def table(after):
    """Lines of the page's first table that follows a text."""
    lines = PAGE[PAGE.index(after) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    return numbers(lines[first:end])


@pytest.mark.parametrize("world_size", WORLDS)
def test_the_bytes_of_ddp_are_the_closed_forms_and_what_the_fake_group_sees(world_size):
    """Only what is linear in the global batch differs between 8, 64 and 512 ranks."""
    with on_device_meta():
        image = TimmTower("vit_base_patch32_clip_224", 224)
        model = TwoTower(image, ClipTextTower(512, 12, 8), WIDTH)
    closed = closed_forms(ROWS, world_size, WIDTH, sum(p.numel() for p in model.parameters()))
    features = {name: torch.empty(ROWS, WIDTH, device="meta") for name in ("image", "text")}
    features["logit_scale"] = torch.empty(1, device="meta")
    found = of_objective(Objective({"infonce": InfoNCE()}), features, {}, ROWS, world_size)
    assert isinstance(found, LossCount), found
    counted = [*found.collectives, *of_strategy("ddp", model, {}, world_size)]
    assert {(each.purpose, each.kind): each.bytes for each in counted} == pytest.approx(closed)
    heads, *rows = table("`ddp`:")
    (row,) = [row for row in rows if row[0] == world_size]
    assert row[1] == ROWS * world_size
    shown = dict(zip(heads[2:], row[2:], strict=True))
    assert shown == {f"{p}: {k}, MB": round(size / 1e6, 1) for (p, k), size in closed.items()}


@pytest.mark.soak
def test_the_tables_are_those_of_the_plan():
    found = {s: {w: planned(w, s) for w in WORLDS} for s in STRATEGIES}
    for strategy, phases in found.items():
        assert table(f"`{strategy}`:") == numbers(byte_table(phases))
    (heads, *said), (_, *rows) = table("*Exchange* is waited"), numbers(time_table(found))
    assert heads[0] == "Strategy" and len(said) == len(rows) == 6
    for old, new in zip(said, rows, strict=True):
        assert old[:2] == new[:2]
        assert old[2:] == pytest.approx(new[2:], rel=0.1, abs=0.2), new
