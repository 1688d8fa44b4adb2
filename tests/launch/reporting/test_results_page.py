"""The page of an evaluation shows its curves, texts and measures, and needs no other file."""

import json
import re

import numpy as np
import pytest

from counterpoint.launch.commands.evaluate import write_page
from counterpoint.launch.reporting.results_page import _means, has_page, render_results
from counterpoint.train.evaluation.details import Curve, Texts

DETAILS = {
    "s/sure/reliability": Curve(
        [0.2, 0.7], [0.1, 0.5], "confidence", "accuracy", [3, 9], kind="shares"
    ),
    "s/rare/by_frequency": Curve(
        [1, 10, 4000], [0.0, 0.5, 1.0], "captions", "accuracy", kind="logarithmic"
    ),
    "s/sharp/by_layer": Curve([0, 1], [0.1, 0.3], "layer", "rise"),
    "s/broken/reliability": Curve([], [], "confidence", "accuracy", [], kind="shares"),
    "s/heads/texts": Texts({"layer 3 head 0": ["a <b>dog</b>", "snow"]}),
}
RECORD = {
    "suite": "s",
    "step": 12,
    "run": "runs/x",
    "weights": "ema",
    "metrics": {"s/sure/top1": 0.625, "s/sure/log_loss.nats": 1.25},
    "intervals": {"s/sure/top1": [0.5, 0.75]},
    "details": {name: each.record() for name, each in DETAILS.items()},
}
LINE = {
    "suite": "s",
    "start": "a",
    "end": "b",
    "line": [
        {
            "alpha": alpha,
            "metrics": {
                "s/in/top1": 0.5,
                "s/in/top5": 0.9,
                "s/in/log_loss.nats": 4 - alpha,
                "s/in/layer0_sharpness.nats": 0.02 * alpha,
                "s/in/sharpness.nats": 0.03 * alpha,
            },
        }
        for alpha in (0.0, 0.5, 1.0)
    ],
}


def test_all_of_it_is_shown_in_one_file():
    page = render_results(json.loads(json.dumps(RECORD)), "runs/x")
    assert page.count("<svg") == 4 and "src=" not in page and "http" not in page
    for words in ("reliability: sure", "by frequency: rare", "by layer: sharp", "step 12, ema"):
        assert words in page
    assert "<td>62.5%</td><td>50.0, 75.0</td>" in page and "<td>1.25 nats</td><td></td>" in page
    assert "a &lt;b&gt;dog&lt;/b&gt; · snow" in page
    assert len(set(re.findall(r' id="([^"]+)"', page))) == len(re.findall(r' id="', page))


def test_a_line_between_two_models_has_a_figure_for_each_kind_of_measure():
    page = render_results(LINE, "a toward b")
    assert page.count("<svg") == 3 and "from a (0) to b (1)" in page
    assert "in (%)" in page and "in (nats)" in page
    assert ">top5<" in page and ">log loss<" in page and ">layer0 sharpness<" in page


def test_means_of_points_go_by_their_number():
    x, y = np.arange(1.0, 17.0)[::-1], np.arange(16.0)[::-1]
    means_x, means_y = _means(x, y)
    assert means_y.tolist() == [0.5 + 2 * k for k in range(8)]
    assert means_x == pytest.approx([np.sqrt(k * (k + 1)) for k in range(1, 17, 2)])


def test_a_page_is_written_where_there_is_more_than_numbers(tmp_path, capsys):
    path = tmp_path / "s-00000012.json"
    path.write_text(json.dumps(RECORD))
    write_page(path, "runs/x")
    page = path.with_suffix(".html").read_text()
    assert (
        "<h1>s: runs/x</h1>" in page and str(path.with_suffix(".html")) in capsys.readouterr().out
    )
    plain = {key: value for key, value in RECORD.items() if key != "details"}
    assert not has_page(plain) and has_page(LINE)
    path.with_suffix(".html").unlink()
    path.write_text(json.dumps(plain))
    write_page(path, "runs/x")
    assert not path.with_suffix(".html").exists()
