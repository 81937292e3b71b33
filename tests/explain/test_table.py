"""The table in the terminal: one-line tokens, marks beside claims, the largest first."""

from dataclasses import replace

import pytest

from diff_oracle.explain.table import print_explanations, share_right, visible
from tests.explain.made import HOSTILE, make_explanation, make_explanations, make_rebuilt, make_text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"), ("the", "the"), ("  a b ", "␣␣a b␣"), (" ", "␣"), ("", ""), ("\n", "\\n"), (" \t", "␣\\t"),
        ("[red]", "[red]"), ("שלום", "שלום"), ("😀", "😀"), ("\x1b[31m", "\\x1b[31m"), ("'", "'"),
    ],
)  # fmt: skip
def test_tokens_are_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_the_largest_stand_first_with_each_claim_marked(capsys: pytest.CaptureFixture[str]) -> None:
    made = make_explanations()
    items = [
        make_explanation(0, 2, "L0", relative_size=0.25, skip_kl=1.0),
        make_explanation(0, 5, "L1H2", relative_size=0.5, skip_kl=0.5, next_token="\x1b]0;[/red]"),
    ]
    made = replace(made, items=items)
    print_explanations(made, "size", 1)
    out = capsys.readouterr().out
    assert "L1H2" in out and "│ L0 " not in out
    assert "␣the ✓" in out and "✗" in out and "0.50" in out
    assert "reads ␣on (4) 50%," in out and "sink 25%" in out
    assert "\x1b" not in out and "\\x1b]0;[/red]" in out.replace("\n", "")
    assert "1 of 2 shown, by size; show=N shows more" in out
    assert out.endswith(f"{made.share_right:.1%} of {made.num_claims} claims are right\n")
    print_explanations(made, "skip_kl", 1)
    out = capsys.readouterr().out
    assert "│ L0 " in out and "L1H2" not in out


def test_texts_are_told_apart_and_taken_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    made = make_explanations()
    items = [make_explanation(1, position, "L0H1") for position in range(1, len(HOSTILE))]
    print_explanations(replace(made, texts=[made.texts[0], make_text(HOSTILE)], items=items), "size", 20)
    out = capsys.readouterr().out
    for place in ("1:1 </script>", "1:4 \\n", "1:5 ␣", "1:7 😀"):
        assert place in out


def test_without_claims_there_is_no_share(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = make_explanation(0, 2, "L0", answers=[], explanation=None, explanation_claims=[])
    made = replace(make_explanations(), items=[nothing])
    assert share_right(made) == "no claim was checked"
    print_explanations(made, "size", 5)
    assert "no claim was checked" in capsys.readouterr().out


def test_what_a_pair_rebuilt_stands_under_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    items = [make_explanation(0, 2, "L0", rebuilt=make_rebuilt(carried)) for carried in (0.5, -0.25)]
    print_explanations(replace(make_explanations(), items=items), "size", 5)
    out = capsys.readouterr().out
    assert "raises ␣the  <i>; lowers ␣dog" in out
    assert "70.0%" in out and "-5.0%" in out
    last = "on average, the words carried 12.5% of a diff: 32.5% rebuilt, 20.0% without words, cosine 0.60"
    assert out.splitlines()[-2] == last
    print_explanations(make_explanations(), "size", 5)
    assert "rebuilt" not in capsys.readouterr().out
