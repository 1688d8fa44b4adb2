"""Run folders as `fit` leaves them, without a run, and a parser of the pages made of them."""

import json
from html.parser import HTMLParser

import numpy as np
import yaml

VOID = {"meta", "img", "br", "hr", "link", "input"}


def fake_run(
    folder,
    num_steps=40,
    batch_size=32,
    seed=0,
    summary=True,
    evaluation=True,
    name="<b>fake</b> & co",
    metric="x",
    trainer=None,
    **settings,
):
    """Writes a run folder as `fit` does; returns the last value of every metric."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, num_steps + 1):
        rows.append({
            "step": step, "wall": 0.5 * step, "loss": 5 / step + rng.random(),
            "loss/contrastive": 5 / step, "logit_scale": 14.0 + step, "lr": 1e-3 / step,
            "grad_norm": 1 + rng.random(), "pairs_per_s": 500 + rng.random(),
            "data_wait": 0.01 * rng.random(), "samples": step * batch_size,
            "clipped_steps": step // 2,
            "errors/bad_image/default": step // 10, "errors/no_caption/left": 0,
        })  # fmt: skip
        if evaluation and step % 10 == 0:
            score = 0.6 * step / num_steps
            rows.append({
                "step": step, "wall": 0.5 * step, "emoji/heldout_twemoji/top1": score + 0.01 * seed,
                "emoji/heldout_openmoji/top1": 0.9 * score,
                **({} if metric == "x" else {f"emoji/{metric}/top1": 0.8 * score + seed / 100}),
                **{f"emoji/retrieval/text_to_image_recall@{k}": score * (1 + k / 30)
                   for k in (10, 1, 5)},
            })  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    config = {
        "seed": seed,
        "name": name,
        "trainer": trainer or {},
        "optim": {"lr": 1e-3, "betas": [0.9, 0.98]} | settings,
        "phases": {"train": {"samples": num_steps * batch_size, "batch_size": batch_size}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    final = {k: v for row in rows for k, v in row.items() if k not in ("step", "wall")}
    if summary:
        facts = {"final": final, "steps": num_steps, "samples": num_steps * batch_size}
        facts |= {"seconds": 125.0, "seed": seed, "versions": {"torch": "2.0"}}
        (folder / "summary.json").write_text(json.dumps(facts))
    return final


class Page(HTMLParser):
    """Tags with attributes, table cells by metric; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.open, self.cells = text, [], [], {}
        self.metric, self.in_cell, self.words, self.attributes = None, False, [], {}
        self.data = None
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.metric = dict(attrs).get("data-metric")
        if tag == "td" and self.metric:
            self.cells.setdefault(self.metric, []).append("")
            self.attributes.setdefault(self.metric, []).append(dict(attrs))
            self.in_cell = True

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("td", "dt", "dd"):
            self.in_cell = False
            self.words.append(" ")

    def handle_data(self, data):
        if self.open[-1:] == ["script"] and self.tags[-1][1].get("type") == "application/json":
            self.data = json.loads(data)
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)
        if self.in_cell:
            self.cells[self.metric][-1] += data

    @property
    def said(self):
        return " ".join("".join(self.words).split())
