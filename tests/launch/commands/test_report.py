"""The report page: it parses, needs no other file, and shows the numbers of the run folder."""

import builtins
import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from fake_runs import Page, fake_run

from counterpoint.launch.commands.report import main, write_report
from counterpoint.launch.reporting.grid import Pairs, png
from counterpoint.launch.reporting.panels import evaluation_panels, training_panels
from counterpoint.launch.reporting.runs import read_run, read_runs


def fake_pairs(folder=None, suite=""):
    """Four captions, six images in plain colours; images 4 and 5 belong to no caption."""
    features = np.eye(6, 8)
    captions = features[[0, 1, 2, 3]] + 0.5 * features[[1, 4, 4, 4]]
    captions[3] = features[5] + 0.1 * features[3]  # taken for image 5
    image = [np.full((3, 4, 4), 40 * i, dtype=np.uint8) for i in range(6)]
    names = ["one", "two", "<three>", "four"]
    return Pairs(names, image.__getitem__, captions, features, [[0], [1], [2], [3]])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "run"
    final = fake_run(folder)
    out = write_report([str(folder)], pairs_of=fake_pairs)
    assert out == folder / "report.html"
    return Page(out.read_text()), final


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    finals = [
        fake_run(root / "a" / "run", seed=0),
        fake_run(root / "b" / "run", seed=1, batch_size=64, summary=False),
        fake_run(root / "c", seed=2, evaluation=False),
    ]
    folders = [str(root / name) for name in ("a/run", "b/run", "c")]
    out = write_report(folders, out=root / "deep" / "page.html", suite="none")
    return Page(out.read_text()), finals


def pages(single, several):
    return [single[0], several[0]]


def test_nothing_is_fetched(single, several):
    for page in pages(single, several):
        assert "http:" not in page.text and "https:" not in page.text
        assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
        for tag, attributes in page.tags:
            for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                address = attributes.get(name)
                assert address is None or address.startswith(("#", "data:image/png;base64,")), (
                    f"<{tag} {name}={address[:60]}>"
                )
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.text))
        assert "@import" not in page.text


def test_identifiers_are_unique_and_references_resolve(single, several):
    for page in pages(single, several):
        counts = Counter(a["id"] for _, a in page.tags if "id" in a)
        assert len(counts) > 50
        assert [name for name, count in counts.items() if count > 1] == []
        wanted = re.findall(r"url\(#([^)]*)\)", page.text)
        wanted += [a["href"][1:] for _, a in page.tags if "href" in a]
        assert wanted
        assert set(wanted) <= set(counts)


def test_the_numbers_are_those_of_the_run(single):
    page, final = single
    shares = [name for name in final if name.startswith("emoji/")]
    assert len(shares) == 5
    for name in shares:
        assert page.cells[name][1] == f"{100 * final[name]:.1f}%"
    assert page.cells["loss"][1] == f"{final['loss']:.4g}"
    assert page.cells["pairs_per_s.last"][1] == f"{final['pairs_per_s']:.4g}"
    assert page.cells["samples"][1] == "1,280"
    assert page.cells["seconds"][1] == "2 min 05 s"
    assert page.cells["errors/bad_image/default"] == ["bad image, source default", "4"]
    assert page.cells["errors/no_caption/left"] == ["no caption, source left", "0"]
    assert "Zero-shot top-1: heldout twemoji" in page.cells["emoji/heldout_twemoji/top1"][0]


def test_curves_of_everything(single):
    page, _ = single
    titles = ["Loss", "Logit scale", "Learning rate", "Gradient norm", "Throughput"]
    titles += ["Waiting for data", "Zero-shot top-1", "Retrieval, text to image", "clipped_steps"]
    labels = [a["aria-label"].split(", ") for tag, a in page.tags if tag == "svg"]
    for title in titles:
        assert any(", ".join(label).startswith(f"{title},") for label in labels), title
    assert len(labels) == len(titles)


def test_one_run_draws_what_was_logged(tmp_path):
    final = fake_run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    loss = training_panels([run])[0].lines[0]
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert loss.y.tolist() == [row["loss"] for row in logged if "loss" in row]
    assert loss.x.tolist() == list(range(1, 41))
    recall = next(p for p in evaluation_panels([run]) if p.title.startswith("Retrieval"))
    assert [line.label for line in recall.lines] == ["R@1", "R@5", "R@10"]
    assert recall.lines[2].y[-1] == final["emoji/retrieval/text_to_image_recall@10"]


def test_several_runs_side_by_side(several):
    page, finals = several
    name = "emoji/heldout_twemoji/top1"
    shown = [f"{100 * final[name]:.1f}%" for final in finals[:2]]
    assert page.cells[name][1:] == [*shown, "-"]
    best = [a.get("class") for a in page.attributes[name]][1:]
    assert best == ["", "best", ""]
    for never in ("loss", "pairs_per_s.last", "mfu.last"):
        assert "best" not in {a.get("class") for a in page.attributes.get(never, [])}
    assert page.cells["state"][1:] == ["ended", "not ended", "ended"]
    # Folders of the same name are told apart; the batch sizes differ, so pairs are the axis.
    assert "a/run" in page.said and "b/run" in page.said
    assert "pairs seen" in page.said
    assert "phases.train.batch_size 32 64 32" in page.said


def test_pairs_are_the_axis_when_steps_differ_in_size(tmp_path):
    fake_run(tmp_path / "a")
    fake_run(tmp_path / "b", batch_size=64)
    panel = evaluation_panels(read_runs([str(tmp_path / "a"), str(tmp_path / "b")]))[0]
    assert panel.x_label == "pairs seen"
    assert panel.lines[0].x.tolist() == [320, 640, 960, 1280]
    assert panel.lines[1].x.tolist() == [640, 1280, 1920, 2560]


def test_names_are_escaped(single):
    page, _ = single
    assert "<b>fake</b>" not in page.text
    assert "<b>fake</b> & co" in page.said
    assert "<three>" in page.said


HOSTILE = "</script><script>alert(1)</script><!--<script>"


def test_names_cannot_leave_the_pages_data(tmp_path):
    for index in range(6):
        folder = tmp_path / f"run{index} <script> & \u2028"
        own = {"name": f"{HOSTILE}{index}", "rule": f"{HOSTILE}{index}"}
        fake_run(folder, seed=index, metric=HOSTILE.replace("/", "|"), **own)
    folders = sorted(map(str, tmp_path.iterdir()))
    page = Page(write_report(folders, tmp_path / "page.html", suite="none").read_text())
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert kinds == ["application/json", None, None]  # ours, and no other
    data = page.data
    assert [run["name"] for run in data["runs"]] == [folder.rsplit("/", 1)[1] for folder in folders]
    titles = [column["title"] for column in data["columns"]]
    assert "seed" in titles and "name" not in titles
    rules = data["columns"][titles.index("optim.rule")]["values"]
    assert rules == [f"{HOSTILE}{index}" for index in range(6)]
    assert any(HOSTILE.replace("/", "|") in title for title in titles)


def test_the_grid_shows_the_best_images_and_marks_the_right_one(single):
    page, _ = single
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 4 * 5
    firsts = [image["alt"].split(",")[0] for image in images[::5]]
    assert firsts == ["right", "right", "right", "wrong"]
    assert images[15]["src"] == png(np.full((3, 4, 4), 200, dtype=np.uint8))
    assert "right for 3 of 4 captions (75.0%)" in page.said
    assert "among the five for 4 (100.0%)" in page.said


def test_a_run_without_evaluation_data_says_so(tmp_path):
    fake_run(tmp_path / "run", evaluation=False)

    def none(folder, suite):
        raise ValueError(f"the shards of {suite} are gone")

    out = write_report([str(tmp_path / "run")], suite="emoji", pairs_of=none)
    page = Page(out.read_text())
    assert "no evaluation results yet" in page.said
    assert "No images can be shown: the shards of emoji are gone." in page.said


def test_a_run_that_was_killed_in_mid_write(tmp_path):
    fake_run(tmp_path / "run", summary=False)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    page = Page(write_report([str(tmp_path / "run")], suite="none").read_text())
    assert page.cells["steps"][1] == "40"
    assert "the run has not ended" in page.said


def test_a_run_that_went_on_after_its_end(tmp_path):
    fake_run(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "wall": 200.0, "loss": 0.125, "samples": 1312}\n')
    run = read_run(tmp_path / "run")
    assert (run.num_steps, run.num_samples, run.seconds) == (41, 1312, 200.0)
    assert run.final["loss"] == 0.125


def test_an_empty_run_and_values_that_are_not_finite(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").write_text("")
    assert (
        "Nothing was logged yet"
        in Page(write_report([str(tmp_path / "new")], suite="none").read_text()).said
    )
    (tmp_path / "bad").mkdir()
    rows = [{"step": s, "wall": s, "loss": float("nan"), "grad_norm": 1e-9} for s in (1, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "bad" / "metrics.jsonl").write_text(text)
    page = Page(write_report([str(tmp_path / "bad")], suite="none").read_text())
    assert page.cells["loss"][1] == "not finite"


def test_a_collapse_is_a_sentence_at_the_top(tmp_path):
    fake_run(tmp_path / "dead", name="dead", evaluation=False)
    fake_run(tmp_path / "alive", name="alive")
    file = tmp_path / "dead" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    equal = {"mean_cosine/image": 0.99999, "mean_cosine/text": 0.4}
    file.write_text("".join(json.dumps(row | equal) + "\n" for row in rows))
    folders = [str(tmp_path / "alive"), str(tmp_path / "dead")]
    said = Page(write_report(folders, suite="none").read_text()).said
    sentence = (
        "collapsed: the embeddings of different images are nearly equal (mean cosine 0.999990)"
    )
    assert f"dead {sentence}" in said and said.count("collapsed:") == 1


def test_bad_folders_get_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no run folder"):
        write_report([str(tmp_path)])
    fake_run(tmp_path / "run")
    with pytest.raises(ValueError, match="named twice"):
        write_report([str(tmp_path / "run")] * 2)
    shutil.copytree(tmp_path / "run", tmp_path / "torn")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "torn" / "metrics.jsonl").write_text("\n".join([lines[0], "{", lines[1]]))
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        write_report([str(tmp_path / "torn")])


def test_missing_matplotlib_gets_a_sentence_with_the_fix(tmp_path, monkeypatch):
    fake_run(tmp_path / "run")
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[report\]'"):
        write_report([str(tmp_path / "run")], suite="none")


def test_the_page_is_the_same_every_time(tmp_path):
    fake_run(tmp_path / "run")
    texts = [
        write_report([str(tmp_path / "run")], tmp_path / name, suite="none").read_text()
        for name in ("x.html", "y.html")
    ]
    assert texts[0] == texts[1]


def test_the_command_prints_the_path(tmp_path, capsys):
    fake_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--suite", "none", "--out", str(tmp_path / "p.html")]) == 0
    assert str(tmp_path / "p.html") in capsys.readouterr().out


def test_what_is_no_run_folder_among_several_is_left_out_and_named(tmp_path, capsys):
    for name in ("a", "b"):
        fake_run(tmp_path / name)
    (tmp_path / "sweep").mkdir()
    named = [str(tmp_path / name) for name in ("a", "b", "sweep")]
    assert main([*named, "--suite", "none"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].split() == ["a", "b"]
    assert printed.err == f"left out: {tmp_path / 'sweep'} (has no metrics.jsonl)\n"
    with pytest.raises(ValueError, match="is no run folder"):
        main([named[2]])


def test_the_command_starts_without_torch():
    code = "import sys, counterpoint.launch.commands.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
