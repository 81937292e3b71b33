"""The page says what the runs' files say, to everybody, and nothing in a run can change the page around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from diff_oracle.evaluation import page as page_module
from diff_oracle.evaluation.page import render_page
from diff_oracle.evaluation.runs import load_runs
from diff_oracle.evaluation.verdict import split_parts
from tests.browsing import chromium, opened
from tests.evaluation.made import GUESSED_ROWS, READ_ROWS, make_row, make_rows, make_run
from tests.taken_apart import Page

HELD_OUT = make_rows({"matched": 0.5, "shuffled": 0.48}, question="promoted, held-out wording")
SITES = make_rows({"matched": 0.7, "shuffled": 0.2}, site_group="heads")


def show(*folders: Path) -> Page:
    return Page(render_page(*load_runs(folders)))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Page:
    rows = [*READ_ROWS, *GUESSED_ROWS, *HELD_OUT, *SITES]
    return show(make_run(tmp_path_factory.mktemp("single") / "demo", rows, {"training": {"steps": 7}}))


@pytest.fixture(scope="module")
def several_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep of three jobs and a failed one; the second has no yes_no, the third a setting of its own."""
    sweep = tmp_path_factory.mktemp("several")
    better = make_rows({"matched": 0.9, "shuffled": 0.3, "site_prior": 0.5})
    training = {"steps": 7, "rate": 0.1}
    make_run(sweep / "0", config={"training": training})
    make_run(sweep / "1", better, {"training": training | {"rate": 0.2}})
    make_run(sweep / "3", config={"training": training, "extra": [1, 2]})
    (sweep / "1" / "select.json").unlink()
    (sweep / "multirun.yaml").touch()
    return render_page(*load_runs([sweep]))


@pytest.fixture(scope="module")
def several(several_html: str) -> Page:
    return Page(several_html)


def test_verdicts_come_first_and_name_what_stands_in_the_way(single: Page) -> None:
    first, *_ = single.tables.values()
    assert first == single.table("wordings as in training")
    assert first[1:] == [
        [
            "logit_lens: promoted precision", "read from the diff: above all 2 controls", "0.812 [0.762, 0.862]",
            "site_prior", "0.552 [0.502, 0.602]", "0.261 [0.211, 0.311]", "60 (20)",
        ],
        [
            "logit_lens: yes_no precision", "not shown: not above site_prior (1 of 2 controls)",
            "0.600 [0.550, 0.650]",
            "site_prior", "0.580 [0.530, 0.630]", "0.020 [-0.030, 0.070]", "60 (20)",
        ],
    ]  # fmt: skip
    assert "1 of 2 questions" in single.text


def test_held_out_and_kinds_of_sites_have_tables_of_their_own(single: Page) -> None:
    assert [row[:3] for row in single.table("held-out wordings and sites")[1:]] == [
        ["logit_lens: promoted, held-out wording precision", "all", "not shown: not above shuffled alone"]
    ]
    assert [row[:3] for row in single.table("kinds of sites")[1:]] == [
        ["logit_lens: promoted precision", "heads", "read from the diff: above shuffled alone"]
    ]


def test_every_number_is_there(single: Page) -> None:
    header, *lines = single.table("every score")
    assert header[:6] == ["task", "question", "sites", "control", "metric", "score"]
    rows = {tuple(line[:5]): line[5:] for line in lines}
    assert len(rows) == len(lines)

    def numbers(row: dict[str, Any] | None) -> list[str]:
        return [f"{row[key]:.4f}" for key in ("value", "ci_low", "ci_high")] if row else [""] * 3

    written = [*READ_ROWS, *GUESSED_ROWS, *HELD_OUT, *SITES]
    for part in split_parts(written):
        for control, row in part.scores.items():
            key = (part.task, part.question, part.site_group, control, row["metric"])
            assert rows.pop(key) == [*numbers(row), *numbers(part.gaps.get(control)), "60", "20"]
    assert rows == {}


def test_a_run_says_where_it_comes_from(single: Page) -> None:
    for said in ("python -m diff_oracle.train", "0123456789abcdef", "device cpu, cores 2", "build 1 s, train 61 s"):
        assert said in single.text
    assert '"steps": 7' in single.text
    assert "tiny-pydoc-0" in single.text and "/somewhere" not in single.text


def test_a_yardstick_stands_apart(tmp_path: Path) -> None:
    page = show(make_run(tmp_path / "demo", make_rows({"matched": 0.8, "linear_probe": 0.9, "shuffled": 0.3})))
    header, line = page.table("wordings as in training")
    assert dict(zip(header, line, strict=True))["yardstick: linear_probe [95 % CI]"] == "0.900 [0.850, 0.950]"
    assert line[1:4] == ["read from the diff: above shuffled alone", "0.800 [0.750, 0.850]", "shuffled"]


def test_a_run_that_lacks_what_others_have_is_shown_all_the_same(tmp_path: Path) -> None:
    """No curve, no gaps, no configuration, a control that nobody knows, a question without `matched`."""
    rows = [make_row("matched", 0.5), make_row("moonlight", 0.1), make_row("shuffled", 0.2, question="choice")]
    folder = make_run(tmp_path / "old", rows)
    (folder / "select.json").unlink()
    (folder / "run.json").write_text("{}")
    page = show(folder)
    assert [row[:2] for row in page.table("wordings as in training")[1:]] == [
        ["logit_lens: promoted precision", "not shown: not above moonlight alone"]
    ]
    assert [row[3] for row in page.table("every score")[1:]] == ["matched", "moonlight", "shuffled"]


def test_runs_side_by_side(several: Page) -> None:
    first, second, *lines = several.table("runs side by side")
    questions = ["logit_lens: promoted", "logit_lens: yes_no"]  # each over two columns
    assert first == ["run", "training.rate", "extra", "training, s", "selection score", *questions]
    assert second == ["matched", "gap to the hardest control"] * 2
    assert lines == [
        ["0", "0.1", "", "61", "0.500",
         "0.812 [0.762, 0.862]", "0.261 [0.211, 0.311] to site_prior of 2: read from the diff",
         "0.600 [0.550, 0.650]", "0.020 [-0.030, 0.070] to site_prior of 2: not shown"],
        ["1", "0.2", "", "61", "",
         "★best: 0.900 [0.850, 0.950]", "★best: 0.400 [0.350, 0.450] to site_prior of 2: read from the diff", "", ""],
        ["3", "0.1", "[1, 2]", "61", "0.500",
         "0.812 [0.762, 0.862]", "0.261 [0.211, 0.311] to site_prior of 2: read from the diff",
         "0.600 [0.550, 0.650]", "0.020 [-0.030, 0.070] to site_prior of 2: not shown"],
    ]  # fmt: skip


def test_what_is_left_where_the_diff_is_taken_away_is_said(single: Page) -> None:
    said = " ".join(single.text.split())
    assert "inputs diff_before and before_after): there none is that state alone" in said


def test_a_control_that_was_not_asked_is_named_beside_the_verdict(tmp_path: Path) -> None:
    absent = make_row("wrong_site", 0.0, n=0, n_docs=0) | dict.fromkeys(("value", "ci_low", "ci_high"))
    page = show(make_run(tmp_path / "demo", [*READ_ROWS, absent]))
    (line,) = page.table("wordings as in training")[1:]
    assert line[1] == "read from the diff: above all 2 controls; not asked: wrong_site"


def test_failed_jobs_are_named_and_runs_can_be_reached(several: Page) -> None:
    assert "2: it has no folder" in several.text
    anchors = {attributes["id"] for attributes in several.of("div") if "id" in attributes}
    links = [attributes["href"] for attributes in several.of("a")]
    assert len(links) == 3 and {str(link).removeprefix("#") for link in links} == anchors


def test_each_heading_sorts_by_its_own_column(several: Page) -> None:
    """The comparison has two rows of headings: together they must number the columns of its body."""
    html_columns = [attributes["data-column"] for attributes in several.of("th") if "data-column" in attributes]
    num_columns = 5 + 2 * 2
    assert sorted(map(int, filter(None, html_columns[:num_columns]))) == list(range(num_columns))


@pytest.mark.parametrize("number", [2, 40])
def test_few_and_many_runs(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "forest", lambda parts: Figure())  # forty take their time
    for job in range(number):
        folder = make_run(tmp_path / str(job), READ_ROWS, {"seed": job})
        (folder / "select.json").unlink()
    page = show(tmp_path)
    lines = page.table("runs side by side")[2:]
    assert [line[:2] for line in lines] == [[str(job), str(job)] for job in range(number)]
    assert not any("★" in cell for line in lines for cell in line)  # all the same: none is best


EVIL = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}$x^{"


def test_what_a_run_says_is_text(tmp_path: Path) -> None:
    rows = make_rows({"matched": 0.8, EVIL: 0.3}, task=EVIL, question=EVIL, metric=EVIL)
    rows += make_rows({"matched": 0.8, EVIL: 0.3}, question=EVIL, site_group=EVIL)
    harmless = EVIL.replace("/", "")
    make_run(tmp_path / harmless, rows, {EVIL: EVIL, "n": 1}, command=EVIL)
    make_run(tmp_path / "other", rows, {EVIL: [EVIL], "n": 2}, command=EVIL)
    for folders in ([harmless], [harmless, "other"]):
        page = show(*(tmp_path / folder for folder in folders))
        assert len(page.of("script")) == 1
        assert page.of("img") == []
        assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
        assert page.text.count(EVIL) > 5 and harmless in page.text
        assert page.table(f"{harmless}: every score")[1][:4] == [EVIL, EVIL, "all", "matched"]


def test_nothing_is_fetched(several: Page, several_html: str) -> None:
    for _, attributes in several.elements:
        assert not {"src", "srcset", "data", "action"} & set(attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    assert "@import" not in several_html and "://" not in several_html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", several_html))
    policy = [a["content"] for a in several.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy[0]).startswith("default-src 'none';")


def test_ids_are_unique_and_everything_referred_to_is_there(several: Page) -> None:
    ids = [attributes["id"] for _, attributes in several.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {str(a["href"])[1:] for _, a in several.elements if "href" in a}
    clips = {str(a["clip-path"])[5:-1] for _, a in several.elements if "clip-path" in a}
    assert referred | clips <= set(ids)


def test_tables_and_figures_can_be_read_aloud(several: Page, single: Page) -> None:
    for page in (single, several):
        assert all(attributes.get("scope") in ("col", "row", "colgroup") for attributes in page.of("th"))
        assert len(page.of("caption")) == len(page.of("table"))
        figures = [a for a in page.of("div") if a.get("class") == "plot"]
        assert len(figures) == len(page.of("svg"))
        assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)
        regions = [a for a in page.of("div") if a.get("role") == "region"]
        assert len(regions) == len(page.of("table"))
        assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    assert render_page(*load_runs([folder])) == render_page(*load_runs([folder]))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_light_dark_and_print(several_html: str) -> None:
    html = several_html
    palettes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{[^}]*\}", html)]
    assert len(palettes) == 3
    assert all(set(palette) == set(palettes[0]) for palette in palettes)
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert used <= set(palettes[0])
    for palette in palettes:
        for ground in ("paper", "panel", "best"):
            for name in ("ink", "muted", "link", "read", "open", "blue", "orange", "green", "red", "purple", "gray"):
                light, dark = sorted((luminance(palette[name]), luminance(palette[ground])), reverse=True)
                least = 4.5 if name in ("ink", "muted", "link", "read", "open") else 3.0
                assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def shown(browser: Any, several_html: str, tmp_path: Path) -> Iterator[Any]:
    """The page of several runs in a browser as wide as a phone."""
    file = tmp_path / "report.html"
    file.write_text(several_html, encoding="utf-8")
    with opened(browser, file.as_uri(), viewport={"width": 390, "height": 844}) as page:
        yield page


def test_a_heading_sorts_by_mouse_and_by_keyboard(shown: Any) -> None:
    table = shown.locator("table.compared")

    def names() -> list[str]:
        return [name.strip() for name in table.locator("tbody th").all_inner_texts()]

    table.get_by_role("button", name="matched").first.click()
    assert names() == ["1", "0", "3"]  # the best number first, ties as they were
    table.get_by_role("button", name="selection score").focus()
    shown.keyboard.press("Enter")
    shown.keyboard.press("Enter")
    assert names() == ["0", "3", "1"]  # the blank last in ascending order too
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_a_phone_shows_the_page_without_scrolling_sideways(shown: Any) -> None:
    shown.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
