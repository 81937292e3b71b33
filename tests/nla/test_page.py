"""The page of a ladder says what its file says, to everybody, and nothing in a run can change the page around it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diff_oracle.nla.evaluation import row_examples
from diff_oracle.nla.ladder import Ladder
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.naming import grouped
from diff_oracle.nla.page import METRICS, render_ladders
from diff_oracle.nla.plots import ladder_forest
from diff_oracle.nla.saved import load_ladders
from diff_oracle.tasks.claims import Claim, Parsed
from diff_oracle.tasks.text import Vocabulary
from diff_oracle.tasks.truth import Measured
from tests.browsing import chromium, opened, serious_violations
from tests.helpers import bundled_loaded
from tests.nla.made import made_rows
from tests.nla.made_ladder import EXAMPLE, FVE, make_ladder, make_line, make_lines
from tests.taken_apart import Page, drawn, labels


def show(*folders: Path) -> Page:
    return Page(render_ladders(load_ladders(folders)))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return show(make_ladder(tmp_path_factory.mktemp("single") / "pair"))


@pytest.fixture(scope="module")
def several_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs of different settings; the second lacks a rung."""
    folder = tmp_path_factory.mktemp("several")
    lines = make_lines({"all": 0.0, "heads": 0.05})
    fewer = [line for line in lines if line["rung"] != "AV: AR"]
    folders = [make_ladder(folder / "a", lines, seed=0), make_ladder(folder / "b", fewer, seed=1)]
    return render_ladders(load_ladders(folders))


def test_every_number_is_in_the_table(single: Page) -> None:
    header, *rows = single.table("every rung")
    assert header[:3] == ["rung", "kind", "sites"] and set(header[3:-1]) <= set(METRICS)
    shown = {(row[0], row[2], metric): cell for row in rows for metric, cell in zip(header[3:], row[3:], strict=False)}
    for line in make_lines():
        if line["rung"] != "denominator" and line["metric"] not in ("fve_gain", "fve_share"):
            cell = shown[line["rung"], line["site_group"], line["metric"]]
            assert cell == f"{line['value']:.3f} [{line['ci_low']:.3f}, {line['ci_high']:.3f}]"
    assert (
        len(rows) == len({(x["rung"], x["site_group"]) for x in make_lines() if not re.search(" [-/] ", x["rung"])}) - 3
    )


def test_denominators_gains_and_shares_have_tables_of_their_own(single: Page) -> None:
    assert single.table("denominators")[1] == [
        "all", "0.800 [0.780, 0.820]", "0.900 [0.880, 0.920]", "2.000 [1.980, 2.020]"
    ]  # fmt: skip
    gains = {row[0]: row[1:] for row in single.table("gains in FVE")[1:]}
    assert gains["AV: bag - before"] == ["0.200 [0.180, 0.220]", "0.250 [0.230, 0.270]", "0.010 [-0.010, 0.030]"]
    shares = {row[0]: row[1:] for row in single.table("shares of FVE")[1:]}
    assert shares["AV: bag / gold: bag"] == ["0.800 [0.780, 0.820]", "0.850 [0.830, 0.870]", "0.610 [0.590, 0.630]"]


def test_a_claim_is_marked_by_its_truth(single: Page) -> None:
    said = " ".join(single.text.split())
    assert "✓true: raises: return ✓true: raises: yield not among the labels ✗false: lowers: import" in said
    assert "✓named: raises: return ✗not named: reads: def" in said
    assert "lines that are no claim: and so on" in said


def test_examples_know_what_is_true_and_what_the_labels_name() -> None:
    rows = made_rows(4, seed=3)
    vocabulary = Vocabulary((loaded := bundled_loaded()).tokenizer, loaded.identity.vocab_size)
    (true, *_), false = (row[0] for row in rows.gold), Claim("reads", "only the sink")
    truth = [Measured(frozenset([true.said]), frozenset(), frozenset(), frozenset())] * 4
    ladder = Ladder(rows, Means.of(rows.sites, rows.target), truth)
    ladder.add("AV: bag", rows.target)
    first, *_ = row_examples(ladder, vocabulary, [Parsed((true, false), ("what?",))] * 4)
    assert [(c["true"], c["measured"]) for c in first["said"]] == [(True, True), (False, False)]
    assert [c["claim"] for c in first["said"]][1] == "reads: only the sink"
    assert [c["said"] for c in first["measured"]] == [c == true for c in rows.gold[0]]
    assert first["other_lines"] == ["what?"] and first["cosine"] == pytest.approx(1)
    json.dumps(first)


def test_a_forest_draws_every_rung_of_every_run_with_its_interval() -> None:
    rows = {rung: make_line(rung, "fve", value) for rung, value in FVE.items()}
    fewer = {rung: row for rung, row in rows.items() if rung != "gold: AR"}
    figure = ladder_forest(grouped(FVE), {"a": rows, "b": fewer})
    panels = {axes.get_title(): axes for axes in figure.axes}
    gold = panels["measured claims"]
    assert labels(gold) == ["bag", "AR", "AR of another seed"]
    intervals, points = drawn(gold)
    assert sorted((round(y), x) for y, x in points) == [(0, 0.5), (0, 0.5), (1, 0.6), (2, 0.6), (2, 0.6)]
    assert {(round(y), low, high) for y, low, high in intervals} == {(0, 0.48, 0.52), (1, 0.58, 0.62), (2, 0.58, 0.62)}
    assert sum(len(axes.get_yticklabels()) for axes in figure.axes) == len(FVE)


def test_several_ladders_stand_side_by_side(several_html: str) -> None:
    page = Page(several_html)
    header, *rows = page.table("settings in which the ladders differ")
    assert header == ["question", "number", "a", "b"]
    assert ["setting", "seed", "0", "1"] in rows
    numbers = {row[1]: row[2:] for row in rows}
    assert numbers["true claims"] == ["0.700 [0.680, 0.720]"] * 2
    assert numbers["FVE of AV: AR"] == ["0.450 [0.430, 0.470]", ""]
    anchors = {attributes["id"] for attributes in page.of("div") if "id" in attributes}
    assert {str(attributes["href"])[1:] for attributes in page.of("a")} == anchors


def test_the_same_ladder_gives_the_same_page(tmp_path: Path) -> None:
    folder = make_ladder(tmp_path / "pair", make_lines({"all": 0.0}))
    assert render_ladders(load_ladders([folder])) == render_ladders(load_ladders([folder]))


EVIL = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}$x^{"


def test_what_a_run_says_is_text(tmp_path: Path) -> None:
    evil = EXAMPLE | {"site": EVIL, "context": EVIL, "other_lines": [EVIL]}
    evil |= {"said": [{"claim": EVIL, "true": True, "measured": False}], "measured": [{"claim": EVIL, "said": True}]}
    lines = [*make_lines({"all": 0.0}), make_line(EVIL, "fve", 0.3), make_line(EVIL, EVIL, 0.3)]
    page = show(make_ladder(tmp_path / "pair", lines, [evil], **{EVIL: EVIL}))
    assert len(page.of("script")) == 1 and page.of("img") == []
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.text.count(EVIL) > 5


def test_nothing_is_fetched_and_every_id_is_its_own(several_html: str) -> None:
    page = Page(several_html)
    assert "@import" not in several_html and "://" not in several_html
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for _, a in page.elements if "href" in a} <= set(ids)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", several_html))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "ladder.json").unlink(), "it has no ladder.json"),
        (lambda folder: (folder / "ladder.json").write_text("[]"), "expected a list of lines"),
        (lambda folder: (folder / "ladder.json").write_text('[{"rung": "x"}]'), "line 0 of its ladder is damaged"),
        (
            lambda folder: (folder / "explanations.json").write_text('[{"said": "x"}]'),
            "another version wrote it",
        ),
        (lambda folder: (folder / "explanations.json").write_text("{"), "is damaged"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, damage: Any, said: str) -> None:
    folder = make_ladder(tmp_path / "pair")
    damage(folder)
    with pytest.raises(ValueError, match=said):
        load_ladders([folder])


def test_more_runs_than_marks_are_refused(tmp_path: Path) -> None:
    folders = [make_ladder(tmp_path / str(i), make_lines({"all": 0.0})) for i in range(6)]
    with pytest.raises(ValueError, match="at most 5 runs"):
        render_ladders(load_ladders(folders))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def test_in_a_browser_it_sorts_fits_a_phone_and_can_be_read_by_everybody(
    browser: Any, several_html: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(several_html, encoding="utf-8")
    for scheme in ("light", "dark"):
        with opened(browser, file.as_uri(), viewport={"width": 390, "height": 844}, color_scheme=scheme) as page:
            page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert serious_violations(page) == []
            table = page.locator("table.sortable").first
            table.locator("th", has_text=re.compile("^fve$")).get_by_role("button").click()
            assert table.locator("tbody th").first.inner_text() == "gold: AR"
            assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
