"""The card's numbers are those of the table, and it shows what filters left out."""

import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.score_table import make_table
from helpers.tiny import write_shards

from counterpoint.data.curate.filters.general.basic import Basic
from counterpoint.data.curate.filters.general.threshold import Threshold
from counterpoint.data.curate.filters.general.weight_by import WeightBy
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.table import Table
from counterpoint.launch.cli import main
from counterpoint.launch.reporting import data_card
from counterpoint.launch.reporting.data_card import Card, Copies, render_card

N = 300
RNG = np.random.default_rng(4)
COLUMNS = {
    "caption": [f"Word{n % 7} word{n % 3}" if n % 50 else None for n in range(N)],
    "error": [None if n % 50 else "bad_image" for n in range(N)],
    "width": RNG.integers(20, 700, N).tolist(),
    "words": RNG.integers(1, 40, N).tolist(),
    "image_hash": RNG.integers(0, 200, N).tolist(),
}


def page(table, *arguments):
    return render_card(table, *(arguments or (None, None)))


def bars(text, title):
    """Names and counts of a chart of the page."""
    part = text.partition(f"<h3>{title}")[2] or text.partition(f"<h2>{title}")[2]
    chart = part.partition("</div>\n\n")[0].partition("<h")[0]
    found = re.findall(r'<span title="(.*?)">.*?<b>([\d,]+)</b>', chart)
    return {name: int(count.replace(",", "")) for name, count in found}


def test_counts_are_those_of_the_table(tmp_path):
    text = page(make_table(tmp_path / "table", COLUMNS, [100, 200]))
    usable = [n for n in range(N) if n % 50]
    assert f"<b>{len(usable)}</b><span>usable samples" in text
    words = Counter(w for n in usable for w in {f"word{n % 7}", f"word{n % 3}"})
    assert bars(text, "Most frequent words") == dict(words)
    lengths = bars(text, "Length")
    assert lengths["15 to 19 words"] == sum(15 <= COLUMNS["words"][n] < 20 for n in usable)
    assert lengths["30 to 49 words"] == sum(COLUMNS["words"][n] >= 30 for n in usable)
    assert sum(lengths.values()) == len(usable)
    sides = bars(text, "Shorter side")
    assert sides["below 32 px"] == sum(COLUMNS["width"][n] < 32 for n in usable)
    assert bars(text, "Samples that cannot be used") == {"bad_image": N - len(usable)}
    distinct = len({COLUMNS["image_hash"][n] for n in usable})
    assert f"<b>{1 - distinct / len(usable):.2%}</b><span>repeat an image file" in text


def test_a_sample_that_cannot_be_used_hides_no_copies(tmp_path):
    """Beside an empty cell, hashes of 64 bits must not become floats."""
    hashes = [(1 << 62) + 12345 * n + 1 for n in range(100)]
    columns = {"image_hash": [*hashes, None, *hashes], "error": [None] * 201}
    columns["error"][100] = "bad_image"
    text = page(make_table(tmp_path / "table", columns, [101, 100]))
    assert "<b>50.00%</b><span>repeat an image file" in text


def test_of_many_hashes_some_are_looked_at(monkeypatch):
    monkeypatch.setattr(data_card, "MAX_HASHES", 2000)
    hashes = RNG.integers(0, 40_000, 100_000)
    copies = Copies()
    for part in np.array_split(hashes, 17):
        copies.add(part)
    exact = 1 - len(set(hashes.tolist())) / len(hashes)
    assert len(copies._counts) <= 2000 and copies.share == pytest.approx(exact, abs=0.03)


def test_rare_words_are_forgotten_first(monkeypatch):
    monkeypatch.setattr(data_card, "MAX_WORDS", 10)
    card = Card()
    names = ["key", "source", "shard", "index", "num_bytes", "words", "width", "height"]
    names += ["image_hash", "caption_hash", "phash"]
    for first in range(0, 100, 10):
        captions = np.array([f"often rare{first + n}" for n in range(10)], dtype=object)
        rows = {name: np.ones(10, dtype=np.int64) for name in names}
        card.add(rows | {"caption": captions, "error": np.full(10, None)})
    assert card.words["often"] == 100 and len(card.words) <= 10


def test_what_filters_left_out_is_shown(tmp_path):
    table = make_table(tmp_path / "table", COLUMNS, [100, 200])
    filters = {"min-size": Basic(min_side=300, min_words=1), "weights": WeightBy("words")}
    out = tmp_path / "out"
    summary = Curation(table, filters, {}, out).run()
    text = page(table, out, None)
    assert f"<td>{summary['filters'][0]['left_out']}</td>" in text
    shown = text.partition("Left out by min-size")[2].partition("</section>")[0]
    assert shown.count("Word") == 8
    assert sum(bars(text, "Weights of what is kept").values()) == summary["kept"]


def test_scores_stand_beside_the_examples(tmp_path):
    numbers = list(range(200, 500))
    columns = {"caption": [f"number {n}" for n in numbers], "width": numbers, "height": numbers}
    table = make_table(tmp_path / "table", columns, [100, 200])
    filters = {"small": Basic(min_side=350, min_words=1), "weights": WeightBy("width", mean=1.0)}
    Curation(table, filters, {}, tmp_path / "out").run()
    text = page(table, tmp_path / "out", None)
    left_out, samples = text.partition("Left out by small")[2].split("Samples of the pool")
    beside = r"number (\d+)<span class=\"value\">width (\d+)</span><span .*?>height (\d+)</span>"
    found = re.findall(beside, left_out)
    assert len(found) == 8 and all(len(set(each)) == 1 for each in found)
    assert all(int(number) < 350 for number, _, _ in found)
    # Of the pool's samples, what filters have given: here those that the first one has kept.
    mean = np.arange(350, 500).mean()
    weighted = re.findall(r"number (\d+)<span class=\"value\">weight ([\d.]+)</span>", samples)
    assert 10 < len(weighted) < 48 == len(re.findall(r"number \d+<", samples))
    for number, weight in weighted:
        assert float(weight) == pytest.approx(int(number) / mean, rel=1e-3)


def test_of_quantiles_lowest_and_highest_are_shown(tmp_path):
    table = make_table(tmp_path / "table", COLUMNS, [100, 200])
    Curation(table, {"half": Threshold("words", fraction=0.5)}, {}, tmp_path / "out").run()
    part = page(table, tmp_path / "out", None).partition("<h3>Counted by half")[2]
    quantiles = re.findall(r"<tr><td>([\d.]+)</td>", part.partition("</section>")[0])
    assert quantiles[0] == "0" and quantiles[-1] == "1" and len(quantiles) == 21


def test_wrong_folders_are_told(tmp_path, capsys):
    table = make_table(tmp_path / "table", COLUMNS, [N])
    other = make_table(tmp_path / "other", {}, [5])
    Curation(other, {"basic": Basic()}, {}, tmp_path / "out").run()
    with pytest.raises(ValueError, match="is of a pool of 5 samples"):
        page(table, tmp_path / "out", None)
    about = table.folder / "table.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "manifest": "one"}))
    one = Table(table.folder)
    Curation(one, {"basic": Basic()}, {}, tmp_path / "one").run()
    assert page(one, tmp_path / "one", None)
    about.write_text(json.dumps({**json.loads(about.read_text()), "manifest": "other"}))
    with pytest.raises(ValueError, match=r"is of another pool than .*, as large; give the table"):
        page(Table(table.folder), tmp_path / "one", None)
    assert main(["card", str(tmp_path), "--out", str(tmp_path / "card.html")]) == 2
    assert "is no score table" in capsys.readouterr().err
    Curation(table, {"basic": Basic()}, {}, tmp_path / "mine").run()
    (step,) = (tmp_path / "mine" / "steps").iterdir()
    verdict = next(step.glob("*/*.parquet"))
    verdict.rename(verdict.with_name("another.parquet"))
    with pytest.raises(ValueError, match=r"has nothing of the shard .*; give the table"):
        page(table, tmp_path / "mine", None)
    pq.write_table(pa.table({"verdict": pa.array([1] * (N - 1), pa.int8())}), verdict)
    with pytest.raises(ValueError, match=rf"has {N - 1} samples of the shard .* the table {N};"):
        page(table, tmp_path / "mine", None)
    step.rename(step.with_name("other-0"))
    with pytest.raises(
        ValueError, match="has nothing of the filter basic; run counterpoint curate"
    ):
        page(table, tmp_path / "mine", None)
    wrong = ["--curation", str(tmp_path), "--out", str(tmp_path / "card.html")]
    assert main(["card", str(table.folder), *wrong]) == 2
    assert "holds no curation" in capsys.readouterr().err
    assert main(["card", str(table.folder), "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_images_come_from_the_shards(tmp_path):
    (shard,) = write_shards(tmp_path / "shards", num_shards=1)
    pool, table = str(tmp_path / "pool.parquet"), str(tmp_path / "table")
    assert main(["data", "index", str(shard), "--out", pool]) == 0
    assert main(["score", pool, "--out", table, "--workers", "1"]) == 0
    card = tmp_path / "card.html"
    assert main(["card", table, "--manifest", pool, "--out", str(card)]) == 0
    samples = json.loads((tmp_path / "table/table.json").read_text())["shards"][0][2]
    assert card.read_text().count("data:image/jpeg;base64,") == samples
    assert "<script" not in card.read_text()
    assert Table(tmp_path / "table").num_samples == samples
