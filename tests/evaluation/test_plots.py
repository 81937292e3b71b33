"""Figures show the numbers, and as parts of a page they keep to themselves."""

import re
from pathlib import Path

from diff_oracle.evaluation.plots import forest, learning_curve, page_svg, side_by_side
from diff_oracle.evaluation.report import draw_learning_curve
from diff_oracle.evaluation.verdict import split_parts
from tests.evaluation.made import GUESSED_ROWS, HISTORY, READ_ROWS, SELECTION, make_rows
from tests.taken_apart import drawn, labels


def test_forest_draws_every_score_and_gap_with_its_interval() -> None:
    rows = make_rows({"matched": 0.8, "linear_probe": 0.9, "shuffled": 0.3, "site_prior": 0.5})
    figure = forest(split_parts([*rows, *GUESSED_ROWS]))
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert set(panels) == {"promoted", "yes_no", "matched - control", ""}
    scores = panels["promoted"]
    names = ["matched", "shuffled", "site_prior", "linear_probe"]  # the yardstick last
    assert labels(scores) == names
    by_control = {row["control"]: row for row in rows}
    for axes, prefix in ((scores, ""), (panels["matched - control"], "matched - ")):
        intervals, points = drawn(axes)
        shown = [(y, by_control[prefix + name]) for y, name in enumerate(names) if prefix + name in by_control]
        assert set(intervals) == {(y, row["ci_low"], row["ci_high"]) for y, row in shown}
        assert set(points) == {(y, row["value"]) for y, row in shown}


def test_gaps_are_filled_only_above_zero() -> None:
    figure = forest(split_parts(GUESSED_ROWS))
    (gaps,) = (axes for axes in figure.axes if axes.get_title() == "matched - control")
    faces = {
        round(float(x), 6): line.get_markerfacecolor()
        for line in gaps.lines
        if line.get_marker() == "o"
        for x in line.get_xdata()
    }
    assert faces == {0.3: "black", 0.02: "white"}  # ± 0.05


def test_runs_side_by_side_leave_a_blank_where_nothing_was_asked() -> None:
    (read,), (guessed,) = split_parts(READ_ROWS), split_parts(GUESSED_ROWS)
    figure = side_by_side("promoted", {"a": read, "b": None, "c" * 99: guessed})
    scores, gaps = sorted(figure.axes, key=lambda axes: axes.get_position().x0)
    assert labels(scores) == ["a", "b", "…" + "c" * 23]
    intervals, points = drawn(scores)
    assert {round(y) for y, *_ in intervals} == {0, 2}
    assert {(round(y), x) for y, x in points} == {(0, 0.8123), (0, 0.5517), (2, 0.6), (2, 0.58)}
    assert set(drawn(gaps)[1]) == {(0, read.gaps["site_prior"]["value"]), (2, guessed.gaps["site_prior"]["value"])}


def test_a_figure_on_a_page_has_ids_colours_and_style_of_that_page() -> None:
    parts = split_parts([*READ_ROWS, *GUESSED_ROWS])
    first, second = (page_svg(prefix, forest, parts) for prefix in ("a-", "b-"))
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert all(name.startswith("a-") for name in ids[0])
    assert ids[0].isdisjoint(ids[1])
    referred = set(re.findall(r'href="#([^"]*)"', first)) | set(re.findall(r"url\(#([^)]*)\)", first))
    assert referred <= ids[0]
    assert not re.findall(r"#[0-9a-f]{6}\b", first)  # every colour is one of the page's variables
    assert "<style" not in first and "xmlns" not in first and "http" not in first
    assert page_svg("a-", forest, parts) == first


def test_text_stays_text_and_is_escaped() -> None:
    rows = make_rows({"matched": 0.5, '<b id="x">$1 & {2}$': 0.4}, question="<script>")
    svg = page_svg("a-", forest, split_parts(rows))
    assert "&lt;b id=\"x\"&gt;$1 &amp; {2}$</text>" in svg  # fmt: skip
    assert "&lt;script&gt;</text>" in svg


def test_learning_curve_shows_loss_and_scores() -> None:
    figure = learning_curve([*HISTORY, {"step": 3, **SELECTION}], stacked=True)
    loss, scores = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1.0, 3.0], [2.0, 1.5], [3.0, 1.0]]
    assert [(line.get_linestyle(), line.get_xydata().tolist()) for line in scores.lines] == [
        ("-", [[3.0, 0.75]]),
        (":", [[3.0, 0.25]]),
    ]


def test_learning_curve_of_a_file_is_a_png_and_an_empty_one_is_drawn_too(tmp_path: Path) -> None:
    draw_learning_curve([*HISTORY, {"step": 3, **SELECTION}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page_svg("a-", learning_curve, [], True)
