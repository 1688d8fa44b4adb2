"""A catalogue of two methods and results for it, as files in a folder."""

import json

import yaml

CLIP_SCORES = (0.38, 0.40, 0.42)
TOP1 = "emoji/heldout/top1"
COLUMNS = {
    "columns": [
        {"title": "Held out", "metrics": [TOP1]},
        {"title": "R@1", "metrics": ["emoji/retrieval/text_to_image_recall@1"]},
    ],
    "sweeps": {"short": {"title": "Short runs", "text": "Few pairs.", "reference": "short/clip"}},
}
CLIP = {
    "title": "CLIP",
    "objective": "softmax",
    "what": "Both | directions.",
    "paper": "Radford et al. 2021",
    "expectation": "A reference.",
    "runs": {"short/clip": "emoji_clip_short", "standard/clip": "emoji_clip"},
    "place": 0,
}
CLAIM = {"run": "short/other", "against": "short/clip", "claim": "better", "says": "More accurate."}
OTHER = {
    "title": "Another",
    "objective": "other",
    "what": "Better.",
    "runs": {"short/other": "emoji_other"},
    "claims": [CLAIM],
}


def write_result(folder, seed, top1=0.35, run="clip", **changes):
    record = {
        "sweep": "short",
        "run": run,
        "config": "emoji_clip_short",
        "seed": seed,
        "overrides": {},
        "identity": {"values": {"optim.lr": 1, "trainer.precision": "bf16-mixed"}, "chosen": []},
        "commit": {"revision": "0123456789abcdef", "dirty": False},
        "machine": {"cpu": "Abacus", "cores": 2, "accelerators": [], "python": "3", "torch": "2"},
        "date": f"2026-01-0{seed + 1}T10:00:00+00:00",
        "seconds": 100.0 + seed,
        "samples": 40000,
        "final": {TOP1: top1, "emoji/retrieval/text_to_image_recall@1": 0.5},
    } | changes
    path = folder / "results" / record["sweep"] / f"{run}-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def catalogue_in(folder, **methods):
    catalogue = folder / "methods"
    catalogue.mkdir(exist_ok=True)
    for name, texts in ({"columns": COLUMNS, "clip": CLIP} | methods).items():
        (catalogue / f"{name}.yaml").write_text(yaml.safe_dump(texts))
    return catalogue
