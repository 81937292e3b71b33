"""Reinforcement learning as a person runs it, on a pair that was hardly trained: what it leaves, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from diff_oracle import evaluate, report, train, train_ar, train_rl
from diff_oracle.cli import compose
from diff_oracle.evaluate import EvaluateConfig
from diff_oracle.nla.arms import BEGAN, load_arms, markdown_arms, to_result
from diff_oracle.nla.evaluation import evaluate_pair
from diff_oracle.nla.held_out import HeldOut, gains
from diff_oracle.nla.rl import ReinforcementLearning
from diff_oracle.report import ReportConfig
from diff_oracle.train import TrainConfig
from diff_oracle.train_ar import TrainArConfig
from diff_oracle.train_rl import TrainRlConfig

FEW = ["ladder.num_rows=24", "ladder.select_rows=60", "ladder.splice_rows=10", "ladder.resamples=50", "ladder.shots=0"]
BRIEF = ["evaluation.controls=[shuffled]", "evaluation.num_rows=6", "evaluation.selection_rows=6"]
BRIEF += ["evaluation.curve_rows=6", "tasks.explanation.num_raised=2", "tasks.explanation.num_lowered=2"]
SHORT = ["training.steps=2", "training.evaluations=1", "training.batch_size=4", "training.tracker=none"]
RL = [
    "rl.steps=2", "rl.diffs=2", "rl.group_size=2", "rl.max_new_tokens=8", "rl.evaluations=1", "rl.selection_rows=6",
    "rl.checkpoint_every=1", "rl.gate=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair, `pair`, and a run of reinforcement learning from it, `rl`."""
    folder = tmp_path_factory.mktemp("rl")
    places = [f"data_dir={folder / 'data'}", f"run_dir={folder / 'oracle'}"]
    train.run(compose("train", TrainConfig, ["+task=[logit_lens,explanation]", "+debug=smoke", *places, *BRIEF]))
    (folder / "pair").mkdir()
    places = [f"oracle={folder / 'oracle'}", f"run_dir={folder / 'pair'}"]
    train_ar.run(compose("train_ar", TrainArConfig, [*places, *FEW, *SHORT, "second_seed=false"]))
    train_rl.run(config(folder, "rl"))
    return folder


def config(folder: Path, name: str, *more: str) -> TrainRlConfig:
    (folder / name).mkdir(exist_ok=True)
    return compose("train_rl", TrainRlConfig, [f"nla={folder / 'pair'}", f"run_dir={folder / name}", *RL, *more])


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_run_leaves_the_pair_its_health_and_the_ladder_before_and_after(made: Path) -> None:
    before, after = read(made / "rl" / "ladder_before.json"), read(made / "rl" / "ladder.json")
    assert before == read(made / "pair" / "ladder.json")  # the pair as it began
    assert {line["rung"] for line in before} == {line["rung"] for line in after}
    rungs = {line["rung"] for line in after}
    checks = ("paraphrased", "quotes only", "quotes stripped", "shuffled", "empty", "false claims removed")
    assert {f"AV, {check}: AR" for check in checks} <= rungs
    health = read(made / "rl" / "health.json")
    assert health["stopped"] is None
    assert [line["step"] for line in health["lines"]] == [0, 1, 2]
    assert health["examples"][0]["measured"]
    found = gains(*(HeldOut.load(made / "rl" / name) for name in ("held_out.json", "held_out_before.json")), 50, 0)
    others = {f"fve of AV{what}" for what in (": bag", *(f", {how}: AR" for how in (
        "reordered", "paraphrased", "quotes only", "quotes stripped")))}  # fmt: skip
    more = {other.replace("fve of ", "fve more than ") for other in others}
    assert set(found) == {"fve", "fve_of_true", "true_claims", "failed", *others, *more}
    fve = {line["rung"]: line["value"] for line in after if (line["metric"], line["site_group"]) == ("fve", "all")}
    began = {line["rung"]: line["value"] for line in before if (line["metric"], line["site_group"]) == ("fve", "all")}
    assert found["fve"].value == pytest.approx(fve["AV: AR"] - began["AV: AR"], abs=1e-5)
    assert (made / "rl" / "health.png").read_bytes().startswith(b"\x89PNG")
    assert not (made / "rl" / "checkpoints").exists()


def test_the_result_is_a_pair_that_evaluate_measures_again(made: Path) -> None:
    (made / "again").mkdir()
    evaluate.run(compose("evaluate", EvaluateConfig, [f"nla={made / 'rl'}", f"run_dir={made / 'again'}"]))
    assert read(made / "again" / "ladder.json") == read(made / "rl" / "ladder.json")


def test_a_killed_run_trusts_its_own_files_alone_and_arms_are_compared(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ReinforcementLearning.fit
    monkeypatch.setattr(ReinforcementLearning, "fit", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_rl.run(config(made, "arm", "rl=frozen_gated"))
    assert (made / "arm" / "ladder_before.json").is_file()
    assert not (made / "arm" / "run.json").exists()
    for left in ("held_out.json", "held_out_before.json"):  # of a run that ended before its first step
        (made / "arm" / left).write_text("[]")
    monkeypatch.setattr(ReinforcementLearning, "fit", fit)
    monkeypatch.setattr(train_rl, "evaluate_pair", lambda *parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_rl.run(config(made, "arm", "rl=frozen_gated"))  # trained, and killed before it was measured
    assert read(made / "arm" / "held_out_before.json") == read(made / "pair" / "held_out.json")
    for what, other in (("count", lambda: 2), ("file_hash", lambda file: "another pair's")):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="unfinished training with other settings"):
            patch.setattr(train_rl, what, other)
            train_rl.run(config(made, "arm", "rl=frozen_gated"))
    began = (made / "arm" / "ladder_before.json").read_text()
    (made / "arm" / "ladder_before.json").write_text("[]")  # if the start were measured again, this would go
    monkeypatch.setattr(train_rl, "evaluate_pair", evaluate_pair)
    train_rl.run(config(made, "arm", "rl=frozen_gated"))
    assert read(made / "arm" / "ladder_before.json") == []
    (made / "arm" / "ladder_before.json").write_text(began)
    result = to_result(load_arms([made / "rl", made / "arm"]))
    arm = "frozen_av, truth_gated"
    gained = {(row["arm"], row["over"]): row["value"] for row in result["gains"] if row["metric"] == "fve"}
    difference = gained[arm, BEGAN] - gained["rl", BEGAN]
    assert gained[arm, "rl"] == pytest.approx(difference)
    assert [of["name"] for of in result["arms"]] == ["rl", arm]
    assert result == json.loads(json.dumps(result))
    shutil.copytree(made / "rl", tmp_path / "again")
    assert [of.name for of in load_arms([made / "rl", tmp_path / "again"])] == ["rl (rl)", "rl (again)"]
    about, began = read(tmp_path / "again" / "run.json"), read(tmp_path / "again" / "held_out_before.json")
    about["config"]["rl"]["reward"]["false_penalty"] = 0.02
    began["error"][0] += 1e-7  # measured again, with other rounding
    (tmp_path / "again" / "run.json").write_text(json.dumps(about))
    (tmp_path / "again" / "held_out_before.json").write_text(json.dumps(began))
    assert [of.name for of in load_arms([made / "rl", tmp_path / "again"])] == ["rl", "rl, priced 0.02"]
    report.run(compose("report", ReportConfig, [f"nla=[{made / 'rl'},{made / 'arm'}]", f"run_dir={tmp_path}"]))
    shown = capsys.readouterr().out
    assert "gain, paired, of" in shown and arm in shown
    assert f"| {arm} | rl | {difference:.3f} [" in markdown_arms(result)


def test_gains_by_hand() -> None:
    docs, sites = ["a", "a", "b", "c"], ["L0"] * 4
    theirs = HeldOut(docs, sites, [2.0] * 4, [1.0] * 4, [1.5] * 4, [0.5] * 4, [0.0] * 4, {"bag": [2.0] * 4, "AR": []})
    ours = HeldOut(
        docs, sites, [2.0] * 4, [0.5, 1.0, 0.5, 1.0], [1.0] * 4, [1.0, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0],
        {"bag": [1.0, 2.0, 1.0, 2.0]},
    )  # fmt: skip
    found = gains(ours, theirs, 200, 0)
    assert {name: e.value for name, e in found.items()} == {
        "fve": 0.125, "fve_of_true": 0.25, "true_claims": 0.125, "failed": 0.25, "fve of bag": 0.25,
        "fve more than bag": -0.125,
    }  # fmt: skip
    assert found["fve"].ci_low == 0.0 and found["fve"].ci_high == 0.25
    with pytest.raises(ValueError, match="measured on different rows"):
        gains(ours, HeldOut(docs, sites, [3.0] * 4, [1.0] * 4, [1.0] * 4, [0.5] * 4, [0.0] * 4, {}), 200, 0)


def test_what_cannot_be_done_is_said(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a finished run"):
        train_rl.run(config(made, "rl"))
    with pytest.raises(ValueError, match=r"is no finished run of diff_oracle.train_rl: it has no run.json, held_out"):
        load_arms([tmp_path])
    shutil.copytree(made / "rl", tmp_path / "other")
    began = read(made / "rl" / "held_out_before.json")
    began["error"][0] += 0.1
    (tmp_path / "other" / "held_out_before.json").write_text(json.dumps(began))
    with pytest.raises(ValueError, match="other began with another pair than"):
        load_arms([made / "rl", tmp_path / "other"])
    shutil.copytree(made / "pair", tmp_path / "pair")
    shutil.rmtree(tmp_path / "pair" / "nla")  # as reader=bag_of_words leaves it
    with pytest.raises(ValueError, match="has no transformer that reads"):
        train_rl.run(config(made, "x", f"nla={tmp_path / 'pair'}"))
    for wrong, said in (
        ("rl.arm=both", "unknown rl.arm 'both': choose from rl, frozen_av, sft_continued"),
        ("rl.group_size=1", "rl.group_size must be at least 2"),
        ("rl.reward.measure=kl", "unknown rl.reward.measure 'kl': choose from nmse, log_nmse"),
        ("rl.updates.clip=0", "rl.updates.clip must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            config(made, "x", wrong)
