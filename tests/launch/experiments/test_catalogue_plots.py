"""The catalogue's drawings: where points stand, what is drawn of which results, and the files."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from catalogue_case import CLIP, CLIP_SCORES, COLUMNS, OTHER, TOP1, catalogue_in, write_result

from counterpoint.launch.experiments.catalogue.drawing import (
    Axes,
    Panel,
    Series,
    log_ticks,
    spread_out,
    svg,
    ticks,
)
from counterpoint.launch.experiments.catalogue.page import render, render_file

PLOTTED = COLUMNS | {"plots": {"short": {"title": "Few <pairs>", "sweeps": ["short"]}}}
HISTORY = {"samples": [10000, 40000], "flops": [1e9, 2e9], TOP1: [0.1, 0.35]}
TRAINING = {"samples": [5000.0, 40000.0], "loss": [4.0, 1.0]}


@pytest.mark.parametrize("seed", range(5))
def test_names_are_apart_and_near_where_they_belong(seed):
    rng = np.random.default_rng(seed)
    wanted = np.sort(rng.uniform(0, 200, 12))
    places = np.array(spread_out(wanted.tolist(), 14.0, 0.0, 200.0))
    assert (np.diff(places) >= 14 - 1e-9).all()
    assert places[0] >= -1e-9 and places[-1] <= 200 + 1e-9
    far = np.array(spread_out([0.0, 50.0, 100.0], 14.0, 0.0, 100.0))
    np.testing.assert_array_equal(far, [0.0, 50.0, 100.0])
    # Two that want the same place share the way.
    assert spread_out([50.0, 50.0], 14.0, 0.0, 100.0) == [43.0, 57.0]


def test_ticks_are_round_numbers():
    np.testing.assert_allclose(ticks(0, 0.8), [0, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(ticks(-1.3, 2.9), [-1, 0, 1, 2])
    np.testing.assert_allclose(log_ticks(1000, 60000), [1e3, 2e3, 5e3, 1e4, 2e4, 5e4])
    np.testing.assert_allclose(log_ticks(20000, 144000), [2e4, 3e4, 5e4, 7e4, 1e5])


def test_points_stand_where_their_numbers_are():
    axes = Axes("x", str, str)
    many = [Series(f"s{x}", [(x, y)]) for x, y in ((0.0, 0.0), (50.0, 0.5), (100.0, 1.0))]
    drawing = svg([Panel(axes, many, (0, 0, 116, 106)).draw()], 200, 200, 'a "name"')
    root = ElementTree.fromstring(drawing)
    circles = root.findall("{*}circle")
    x, y = ([float(circle.attrib[key]) for circle in circles] for key in ("cx", "cy"))
    # Eight points of room on both sides, and six percent above.
    assert x == [8.0, 58.0, 108.0]
    assert y == [106.0, 56.0, 6.0]
    assert root.attrib["aria-label"] == 'a "name"'


def drawings_in(folder, **methods) -> dict[str, str]:
    catalogue = catalogue_in(folder, **({"columns": PLOTTED, "other": OTHER} | methods))
    files = render(catalogue, folder / "results")
    return {name.rpartition("/")[2]: text for name, text in files.items()}


def test_a_run_with_a_history_is_a_curve_and_another_a_point(tmp_path):
    for seed, top1 in enumerate(CLIP_SCORES):
        write_result(tmp_path, seed, top1)
        write_result(tmp_path, seed, run="other", history=HISTORY, training=TRAINING)
    files = drawings_in(tmp_path)
    assert set(files) == {"methods.md", "short_pairs.svg", "short_compute.svg", "other.svg"}
    for name in ("short_pairs.svg", "short_compute.svg"):
        ElementTree.fromstring(files[name])
        # One curve a seed, of the one run that kept it.
        assert files[name].count('stroke-width="1.4"') == 3
    assert "Few &lt;pairs&gt;" in files["short_pairs.svg"]
    page = files["methods.md"]
    for name in ("short_pairs", "short_compute", "other"):
        assert f"](images/of_methods/{name}.svg)" in page
    # The plots open the page.
    assert page.index("short_pairs.svg") < page.index("What you may rely on")
    # Accuracy and loss of the method; the baseline has neither.
    assert files["other.svg"].count('stroke-width="1.4"') == 6
    assert ">clip<" not in files["other.svg"]


def test_compute_grows_as_the_operations_do(tmp_path):
    """Half of them after a quarter of the pairs: a curve's start is at half of the time."""
    write_result(tmp_path, 0, run="other", seconds=600.0, history=HISTORY)
    drawn = drawings_in(tmp_path)["short_compute.svg"]
    (path,) = re.findall(r'<path d="M([\d. L]+)" stroke="var\(--\w+\)" stroke-width="1.4"', drawn)
    (start, _), (end, _) = (map(float, point.split()) for point in path.split("L"))
    spent = {float(x): text for x, text in re.findall(r'c" x="([\d.]+)" y="[\d.]+">(\d+)<', drawn)}
    # Five and ten minutes are both ends of the axis.
    assert (spent[start], spent[end]) == ("5", "10")


def test_runs_that_begin_with_trained_weights_are_left_out(tmp_path):
    identity = {"values": {"init_from": "runs/x"}, "chosen": []}
    write_result(tmp_path, 0)
    write_result(tmp_path, 0, run="other", identity=identity)
    drawn = drawings_in(tmp_path)["short_pairs.svg"]
    assert ">clip<" in drawn and ">other<" not in drawn


def test_files_are_written_and_old_ones_removed(tmp_path):
    write_result(tmp_path, 0)
    catalogue = catalogue_in(tmp_path, columns=PLOTTED, clip=CLIP)
    images = tmp_path / "images" / "of_methods"
    images.mkdir(parents=True)
    (images / "gone.svg").write_text("old")
    render_file(catalogue, tmp_path / "results")
    assert sorted(file.name for file in images.iterdir()) == [
        "short_compute.svg",
        "short_pairs.svg",
    ]
    expected = render(catalogue, tmp_path / "results")
    for name, content in expected.items():
        assert (tmp_path / name).read_text() == content
