"""What a ladder has shown, in plain words, and its tables for a README."""

import sys
from pathlib import Path

import pytest

from diff_oracle import report
from diff_oracle.nla.headlines import headlines
from diff_oracle.nla.naming import RungName, grouped
from diff_oracle.nla.page import render_ladders
from diff_oracle.nla.report import markdown_ladder, markdown_sites
from diff_oracle.nla.saved import SavedLadder, load_ladders
from tests.evaluation.made import make_run
from tests.nla.made_ladder import make_ladder, make_line, make_lines


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> SavedLadder:
    (read,) = load_ladders([make_ladder(tmp_path_factory.mktemp("report") / "pair")])
    return read


def test_every_question_is_answered_with_intervals(ladder: SavedLadder) -> None:
    blind, truth, kept, code, step, readers, kl = (headline.answer for headline in headlines(ladder))
    assert "The gain is 0.200 [0.180, 0.220]: above zero" in blind
    assert "above zero for heads; not told from zero for layers" in blind
    assert "true on the model is 0.700 [0.680, 0.720]" in truth and "among the 50 most raised" in truth
    assert "From the text alone it would be 0.100 [0.080, 0.120] and 0.050 [0.030, 0.070]" in truth
    assert "the true ones carry 75% [73%, 77%] of it. The difference is 0.100 [0.080, 0.120]: above zero" in kept
    assert "-0.010 [-0.030, 0.010]: a code without meaning does as well" in code
    assert "the oracle's words add 0.150 [0.130, 0.170], above zero" in step
    assert "words without meaning add 0.200 [0.180, 0.220], above zero" in step
    assert "above zero for heads; below zero for layers" in step
    assert "80% [78%, 82%] of the 0.500 [0.480, 0.520]" in readers and "one of another seed 0.420" in readers
    assert "By kind of site it is 85% [83%, 87%] for heads, 61% [59%, 63%] for layers." in readers
    assert "the bag-of-words reader keeps 89% [87%, 91%]; one of another seed keeps 93% [91%, 95%]." in readers
    assert "leaves 0.750 [0.730, 0.770]" in kl


def test_each_kind_of_site_has_its_own_best_rung_that_never_saw_the_diff(tmp_path: Path) -> None:
    lines = [line for line in make_lines() if (line["rung"], line["site_group"]) != ("token mean", "heads")]
    lines += [
        make_line("token mean", "fve", 0.3, "heads"),
        make_line("AV: bag - token mean", "fve_gain", -0.5, "heads"),
    ]
    lines += [make_line("AV: bag - token mean", "fve_gain", 0.3, group) for group in ("all", "layers")]
    (read,) = load_ladders([make_ladder(tmp_path / "pair", lines)])
    blind = headlines(read)[0]
    assert (
        "never saw the diff, before, 0.200 [0.180, 0.220] (by kind of site also token mean for heads)" in blind.answer
    )
    assert "The gain is 0.200 [0.180, 0.220]: above zero" in blind.answer
    assert "not told from zero for layers" in blind.answer and "below zero for heads" in blind.answer
    assert blind.lines["gain over the best of each kind of site"]["heads"]["value"] == -0.5


def test_a_ladder_without_shares_gives_them_without_intervals(tmp_path: Path) -> None:
    lines = [line for line in make_lines() if line["metric"] != "fve_share"]
    (read,) = load_ladders([make_ladder(tmp_path / "older", lines)])
    _, _, kept, _, _, readers, _ = (headline.answer for headline in headlines(read))
    assert "the true ones carry 75% of it" in kept and "the bag-of-words reader keeps 89%;" in readers
    assert "share of FVE" not in markdown_ladder(read)
    close = [line | {"ci_low": -0.01} if line["rung"] == "AV: bag" else line for line in lines]
    (read,) = load_ladders([make_ladder(tmp_path / "close", close)])
    assert "the true ones carry no share of it" in headlines(read)[2].answer


def test_a_share_that_only_a_kind_of_site_has_is_shown_there(tmp_path: Path) -> None:
    lines = [line for line in make_lines() if (line["metric"], line["site_group"]) != ("fve_share", "all")]
    folders = [make_ladder(tmp_path / name, lines) for name in ("a", "b")]
    assert "0.850 [0.830, 0.870]" in render_ladders(load_ladders(folders))


@pytest.mark.parametrize(("gain", "said"), [(0.1, "meaning adds"), (-0.1, "does better"), (0.0, "does as well")])
def test_the_code_is_judged_by_the_whole_interval(tmp_path: Path, gain: float, said: str) -> None:
    name = "gold: bag - rotated_codebook: bag"
    lines = [line for line in make_lines({"all": 0.0}) if line["rung"] != name]
    (read,) = load_ladders([make_ladder(tmp_path / "pair", [*lines, make_line(name, "fve_gain", gain)])])
    (answer,) = (h.answer for h in headlines(read) if "are they a code" in h.question)
    assert said in answer


def test_a_question_whose_rungs_are_missing_is_left_out(tmp_path: Path) -> None:
    (read,) = load_ladders([make_ladder(tmp_path / "pair", [make_line("before", "fve", 0.2)])])
    assert headlines(read) == []
    assert "The ladder lacks the rungs" in render_ladders([read])


def test_rungs_are_grouped_by_who_wrote_what_is_read() -> None:
    names = ["AV, quotes only: AR of another seed", "text: explained: AR", "AV: bag, before", "before", "true diff"]
    names += ["rotated_codebook: bag, before", "gold, paraphrased: AR"]
    assert {group: [rung.label for rung in rungs] for group, rungs in grouped(names).items()} == {
        "bounds": ["true diff"],
        "never saw the diff": ["text: explained: AR", "before"],
        "the oracle's claims": ["bag, before"],
        "a code without meaning": ["bag, before"],
        "measured claims, altered": ["paraphrased: AR"],
        "the oracle's claims, altered": ["quotes only: AR of another seed"],
    }
    assert RungName.parse("error of the same size, like diffs").label == "same size, like diffs"


def test_markdown_shows_main_rungs_and_gains_and_folds_the_rest(ladder: SavedLadder) -> None:
    shown, folded = markdown_ladder(ladder).split("<details>")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line]
    assert lines[0] == [
        "rung [95 % CI]", "FVE, all sites", "FVE, heads", "FVE, layers", "true_claims, of the 50 most", "coverage",
        "kl_recovered",
    ]  # fmt: skip
    cells = {line[0]: line[1:] for line in lines}
    assert cells["AV: bag"] == [
        "0.400 [0.380, 0.420]", "0.450 [0.430, 0.470]", "0.210 [0.190, 0.230]", "0.700 [0.680, 0.720]",
        "0.400 [0.380, 0.420]", "0.600 [0.580, 0.620]",
    ]  # fmt: skip
    assert cells["AV: bag - before"] == ["0.200 [0.180, 0.220]", "0.250 [0.230, 0.270]", "0.010 [-0.010, 0.030]"]
    assert cells["AV: bag / gold: bag"] == ["0.800 [0.780, 0.820]", "0.850 [0.830, 0.870]", "0.610 [0.590, 0.630]"]
    assert "AV, shuffled: bag" not in shown and "| AV, shuffled: bag | -0.400 [-0.420, -0.380] |" in folded
    assert "about the site's mean: all 0.800 [0.780, 0.820]" in shown and folded.endswith("</details>")


def test_sites_are_counted_by_kind() -> None:
    def site(name: str, value: float) -> dict[str, object]:
        return {"site": name} | make_line("gold: bag", "", value, width=0.1)

    lines = [site("L0H1", 0.6), site("L1H0", 0.2), site("L1H1", 0.04), site("L1", -0.3)]
    assert markdown_sites(lines).splitlines()[0].endswith("| heads | layers |")
    assert markdown_sites(lines).splitlines()[2] == "| gold: bag | 0.280; 2, 0 of 3 | -0.300; 0, 1 of 1 |"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    report.main()


def test_the_command_writes_the_page_and_says_what_was_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_ladder(Path("runs/pair"), make_lines({"all": 0.0}))
    call(monkeypatch, "nla=runs/pair", "run_dir=out")
    assert Path("out/report.html").read_text(encoding="utf-8") == render_ladders(load_ladders(["runs/pair"]))
    said = capsys.readouterr().out
    assert said.startswith("pair\n  Do the words tell more") and said.endswith("out/report.html\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nla=nowhere"], "is no run directory of diff_oracle.train_ar"),
        (["nla=runs/oracle"], "it has no ladder.json"),
        (["nla=runs/pair", "runs=runs/oracle"], "give either runs= or nla="),
    ],
)
def test_what_is_no_ladder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    make_run(Path("runs/oracle"))
    make_ladder(Path("runs/pair"))
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, *arguments, "run_dir=out")
    assert ended.value.code == 2 and said in capsys.readouterr().err
