"""The table names the hardest control and how far the diff's score is above it."""

from io import StringIO

from rich.console import Console
from rich.table import Table

from diff_oracle.evaluation.report import (
    HEADER,
    markdown_table,
    markdown_verdicts,
    runs_table,
    table_lines,
    terminal_table,
    verdict_table,
)
from tests.evaluation.made import GUESSED_ROWS, READ_ROWS, make_row, make_rows


def row(question: str, group: str, control: str, value: float) -> dict[str, object]:
    return {
        "task": "logit_lens", "question": question, "split": "test", "site_group": group, "control": control,
        "metric": "precision", "value": value, "ci_low": value - 0.01, "ci_high": value + 0.01, "n": 60, "n_docs": 20,
    }  # fmt: skip


def rows(question: str, group: str = "all") -> list[dict[str, object]]:
    scores = {"matched": 0.8, "shuffled": 0.3, "site_prior": 0.55}
    result = [row(question, group, "matched", 0.8)]
    for control in ("shuffled", "site_prior"):
        result.append(row(question, group, control, scores[control]))
        result.append(row(question, group, f"matched - {control}", 0.8 - scores[control]))
    return result


HELDOUT = "promoted, held-out wording"
ROWS = [*rows("promoted"), *rows(HELDOUT), *rows(HELDOUT, "head"), *rows("promoted", "head"), *rows("choice", "head")]


def test_lines_of_all_sites_end_with_the_hardest_control() -> None:
    name, size = "logit_lens: promoted", "60 (20)"
    assert table_lines(rows("promoted")) == [
        (name, "all", "matched", "0.800 [0.790, 0.810]", "", size),
        (name, "all", "shuffled", "0.300 [0.290, 0.310]", "0.500 [0.490, 0.510]", size),
        (name, "all", "site_prior", "0.550 [0.540, 0.560]", "0.250 [0.240, 0.260]", size),
        (name, "all", "hardest: site_prior", "0.550 [0.540, 0.560]", "0.250 [0.240, 0.260]", size),
    ]


def test_a_yardstick_is_shown_behind_the_hardest_control_and_is_not_it() -> None:
    lines = table_lines(make_rows({"matched": 0.5, "linear_probe": 0.9, "shuffled": 0.2}))
    assert [line[2:4] for line in lines] == [
        ("matched", "0.500 [0.450, 0.550]"),
        ("shuffled", "0.200 [0.150, 0.250]"),
        ("hardest: shuffled", "0.200 [0.150, 0.250]"),
        ("yardstick: linear_probe", "0.900 [0.850, 0.950]"),
    ]
    assert "| yardstick: linear_probe | 0.900" in markdown_table(
        make_rows({"matched": 0.5, "linear_probe": 0.9}, question=HELDOUT)
    )


def test_a_control_that_is_new_is_shown_too() -> None:
    assert [line[2] for line in table_lines(make_rows({"matched": 0.5, "moonlight": 0.2}))] == [
        "matched",
        "moonlight",
        "hardest: moonlight",
    ]


def test_a_single_site_group_shows_matched_and_shuffled() -> None:
    assert [line[2] for line in table_lines(rows("promoted", "head"))] == ["matched", "shuffled"]


def test_without_a_control_nothing_is_hardest() -> None:
    assert [line[2] for line in table_lines([row("promoted", "all", "matched", 0.8)])] == ["matched"]


def test_markdown_has_both_wordings_and_promoted_by_site() -> None:
    lines = markdown_table(ROWS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(HEADER)
    assert all(len(line) == len(HEADER) for line in cells)
    assert [line[:3] for line in cells[2:]] == [
        *(["logit_lens: promoted", "all", c] for c in ("matched", "shuffled", "site_prior", "hardest: site_prior")),
        *([f"logit_lens: {HELDOUT}", "all", c] for c in ("matched", "shuffled", "hardest: site_prior")),
        *(["logit_lens: promoted", "head", c] for c in ("matched", "shuffled")),
    ]


def test_terminal_table_shows_every_line() -> None:
    console = Console(width=200, record=True, file=StringIO())
    console.print(terminal_table(ROWS))
    shown = console.export_text()
    assert shown.count("hardest: site_prior") == 2  # one a question and wording
    assert "0.250 [0.240, 0.260]" in shown  # rich has not eaten the brackets as markup


def shown(table: Table) -> list[list[str]]:
    """The cells of each line."""
    console = Console(width=200, record=True, file=StringIO())
    console.print(table)
    lines = [line.split("│")[1:-1] for line in console.export_text().splitlines()]
    return [[cell.strip() for cell in line] for line in lines if line]


def test_verdicts_in_the_terminal() -> None:
    assert shown(verdict_table([*READ_ROWS, *GUESSED_ROWS])) == [
        ["logit_lens: promoted", "read from the diff: above all 2 controls", "0.812 [0.762, 0.862]",
         "site_prior 0.552", "0.261 [0.211, 0.311]"],
        ["logit_lens: yes_no", "not shown: not above site_prior (1 of 2 controls)", "0.600 [0.550, 0.650]",
         "site_prior 0.580", "0.020 [-0.030, 0.070]"],
    ]  # fmt: skip


def test_markdown_says_how_many_controls_stand_behind_a_verdict_and_which_were_not_asked() -> None:
    absent = make_row("wrong_site", 0.0, n=0, n_docs=0) | dict.fromkeys(("value", "ci_low", "ci_high"))
    rows = [*READ_ROWS, absent, *GUESSED_ROWS]
    *_, read, guessed = (line.split(" | ")[-1].removesuffix(" |") for line in markdown_verdicts(rows).splitlines())
    assert read == "**read from the diff**: above all 2 controls; not asked: wrong_site"
    assert guessed == "not shown: not above site_prior (1 of 2 controls)"
    assert "| logit_lens: promoted | all | wrong_site | not asked |  | 0 (0) |" in markdown_table(rows)


def test_several_runs_in_the_terminal() -> None:
    assert shown(runs_table({"a": READ_ROWS, "[b]": [*READ_ROWS, *GUESSED_ROWS]})) == [
        ["a", "1 of 1", ""],
        ["[b]", "1 of 2", "logit_lens: yes_no"],
    ]
