"""The diff-NLA as a person makes it: an oracle that explains, a reconstructor, the ladder, and the pair from disk."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from data_gen.build import build
from diff_oracle import evaluate, train_ar, verbalise
from diff_oracle.cli import compose
from diff_oracle.evaluate import EvaluateConfig
from diff_oracle.nla import DiffNLA
from diff_oracle.nla.evaluation import AR, CODE_AR, CODE_LIKE_AV, CONTEXT_AR, GAINS, SECOND_AR, SHARES
from diff_oracle.nla.runs import load_pair_run
from diff_oracle.records import open_dataset
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.subject.model import Subject
from diff_oracle.train import TrainConfig
from diff_oracle.train_ar import TrainArConfig
from diff_oracle.verbalise import VerbaliseConfig
from tests.explain.conftest import untrained_oracle

FEW = ["ladder.num_rows=40", "ladder.select_rows=60", "ladder.splice_rows=30", "ladder.resamples=50", "ladder.shots=1"]
BRIEF = [f"tasks.explanation.{name}" for name in ("num_raised=2", "num_lowered=2", "num_read=1")]
SHORT = ["training.steps=2", "training.evaluations=1", "training.batch_size=4", "training.tracker=none"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an oracle as training would begin with it, and a pair made of it."""
    folder = tmp_path_factory.mktemp("nla")
    tasks = "+task=[logit_lens,attention,layer_skip,explanation]"
    settings = compose("train", TrainConfig, [tasks, "+debug=smoke", f"data_dir={folder / 'data'}", *BRIEF])
    untrained_oracle().save(folder / "oracle" / "oracle")
    build(settings)
    about = {"dataset": str(folder / "gone"), "config": asdict(settings)}
    (folder / "oracle" / "run.json").write_text(json.dumps(about))
    train_ar.run(config(folder, "pair", "rotated_codebook=true"))
    return folder


def config(folder: Path, name: str, *more: str) -> TrainArConfig:
    (folder / name).mkdir(exist_ok=True)
    (dataset,) = (folder / "data").iterdir()
    places = [f"oracle={folder / 'oracle'}", f"dataset={dataset}", f"run_dir={folder / name}"]
    return compose("train_ar", TrainArConfig, [*places, *FEW, *SHORT, "second_seed=false", *more])


def test_a_run_leaves_the_ladder_with_every_rung(made: Path) -> None:
    lines = json.loads((made / "pair" / "ladder.json").read_text())
    keys = {"rung", "site_group", "metric", "value", "ci_low", "ci_high", "n", "n_docs"}
    assert all(set(line) == keys for line in lines)
    values = {(x["rung"], x["metric"]): x["value"] for x in lines if x["site_group"] == "all"}
    rungs = ["global mean", "site mean", "token mean", "before", "text: AR", "text: explained", "text: prompted"]
    rungs += [f"{writer}{change}: bag" for writer in ("gold", "AV") for change in ("", ", shuffled", ", empty")]
    rungs += [f"{writer}{change}: AR" for writer in ("gold", "AV") for change in ("", ", paraphrased", ", shuffled")]
    rungs += ["rotated_codebook: bag", CODE_LIKE_AV, "AV, false claims removed: AR", "gold, quotes stripped: AR"]
    rungs += ["site habit: bag", "site habit, false claims removed: bag"]
    compared = {rung for pair in (*GAINS, *SHARES) for rung in pair if SECOND_AR not in rung}
    assert {(rung, "fve") for rung in (*rungs, *compared)} <= set(values)
    assert json.loads((made / "pair" / "run.json").read_text())["skipped_steps"] == {AR: 0, CONTEXT_AR: 0, CODE_AR: 0}
    assert values["site mean", "fve"] == 0.0
    assert values["gold: bag", "true_claims"] > 0.99  # what the labels say is true on the model
    assert values["gold: bag", "coverage"] == 1.0
    assert values["gold, shuffled: bag", "fve"] < values["gold: bag", "fve"]
    assert values["true diff", "kl"] < 1e-4  # that this is the model's own output: test_splice.py
    assert values["no diff", "kl_recovered"] == 0.0
    assert not (made / "pair" / "ar" / "checkpoints").exists()


def test_a_code_without_meaning_is_read_by_one_that_learned_it(made: Path) -> None:
    run = load_pair_run(made / "pair", "cpu")
    ours, codes = (run.readers[name].floor for name in (AR, CODE_AR))
    assert ours is not None and codes is not None and not torch.allclose(ours.weight, codes.weight, atol=1e-3)


def test_the_same_pair_gives_the_same_ladder(made: Path) -> None:
    (made / "again").mkdir()
    evaluate.run(compose("evaluate", EvaluateConfig, [f"nla={made / 'pair'}", f"run_dir={made / 'again'}"]))
    for name in ("ladder.json", "explanations.json"):
        assert json.loads((made / "again" / name).read_text()) == json.loads((made / "pair" / name).read_text())


def test_the_pair_explains_rebuilds_and_scores(made: Path, tmp_path: Path) -> None:
    pair = DiffNLA.from_pretrained(made / "pair" / "nla")
    about = json.loads((made / "pair" / "run.json").read_text())
    dataset = open_dataset(Path(about["dataset"]), pair.av.identity.weights_hash, pair.av.identity.tokenizer_hash)
    record = dataset.split("test")[0]
    assert "Diff-NLA of tiny" in (made / "pair" / "nla" / "README.md").read_text()
    text = pair.explain(record)
    rebuilt = pair.reconstruct(text, record.site)
    assert rebuilt.shape == record.diff.shape
    score = pair.score(record, "raises: the\nraises: a", Subject(load_hf_model(SubjectConfig())))
    assert score.claims == 2
    assert score.true_claims in (0, 1, 2)
    assert pair.score(record, "raises: the").true_claims is None
    assert score.nmse == pytest.approx(2 * (1 - score.cosine))
    for told, missing in (("vector", "before=, the residual before the diff"), ("text", "token_ids=, the context")):
        pair.ar.config = replace(pair.ar.config, before=told)
        with pytest.raises(ValueError, match=f"rebuilds diffs with {missing}: give it too"):
            pair.reconstruct(text, record.site)
        assert pair.reconstruct(text, record.site, record.before, record.token_ids).shape == record.diff.shape
    pair.ar.config = replace(pair.ar.config, before="none", target="residual")
    with pytest.raises(ValueError, match="rebuilds the residual of ridge regression"):
        pair.score(record, "raises: the")
    shutil.copytree(made / "pair" / "nla", tmp_path / "nla")
    settings = tmp_path / "nla" / "nla.json"
    settings.write_text(settings.read_text().replace('"num_read": 1', '"num_read": 2'))
    with pytest.raises(ValueError, match=r"nla\.json cannot be read.*edited since it was saved"):
        DiffNLA.from_pretrained(tmp_path / "nla")


def test_what_cannot_be_done_is_said(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a finished run"):
        train_ar.run(config(made, "pair"))
    with pytest.raises(ValueError, match="is no run directory of diff_oracle.train"):
        train_ar.run(compose("train_ar", TrainArConfig, [f"oracle={tmp_path}", f"run_dir={tmp_path / 'x'}"]))
    with pytest.raises(ValueError, match="choose either dataset= or data_dir="):
        config(made, "pair", f"data_dir={tmp_path}")
    with pytest.raises(ValueError, match="either oracle=RUN"):
        evaluate.run(compose("evaluate", EvaluateConfig, [f"run_dir={tmp_path}"]))
    with pytest.raises(ValueError, match="is no run directory of diff_oracle.train_ar"):
        evaluate.run(compose("evaluate", EvaluateConfig, [f"nla={tmp_path}", f"run_dir={tmp_path / 'x'}"]))
    with pytest.raises(ValueError, match="holds no diff-NLA"):
        DiffNLA.from_pretrained(tmp_path)
    about = json.loads((made / "oracle" / "run.json").read_text())
    del about["config"]["tasks"]["explanation"]
    (tmp_path / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="was not trained to explain"):
        train_ar.run(compose("train_ar", TrainArConfig, [f"oracle={tmp_path}", f"run_dir={tmp_path / 'x'}"]))


def test_verbalise_scores_every_site(made: Path, tmp_path: Path) -> None:
    words = ["+task=[logit_lens,attention,explanation]", f"data_dir={tmp_path}", f"run_dir={tmp_path}"]
    few = ["sites.names=[L0H1,L2]", "sampling.max_documents=120", "resamples=100"]
    verbalise.run(compose("verbalise", VerbaliseConfig, [*words, *few]))
    lines = json.loads((tmp_path / "sites.json").read_text())
    assert {line["site"] for line in lines} == {"L0H1", "L2"}
    fve = {(line["site"], line["rung"]): line["value"] for line in lines}
    for site in ("L0H1", "L2"):
        assert fve[site, "gold: bag"] > fve[site, "gold, shuffled: bag"]
        gain = fve[site, "gold: bag"] - fve[site, "rotated_codebook: bag"]
        assert fve[site, "gold: bag - rotated_codebook: bag"] == pytest.approx(gain)
    assert (tmp_path / "sites.png").read_bytes().startswith(b"\x89PNG")
