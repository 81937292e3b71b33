"""The command, as a person runs it: killed and started again, with texts of any kind, with wrong words."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_oracle.cli import compose
from diff_oracle.explain import Explainer, Explanations, __main__, explain
from diff_oracle.explain.__main__ import ExplainConfig, hydra_words
from diff_oracle.explain.store import FILE
from diff_oracle.nla import DiffNLA
from diff_oracle.oracle.reading import Reading
from diff_oracle.subject.capture import diffs_of_text
from diff_oracle.subject.model import Subject
from diff_oracle.tasks import make_tasks
from tests.explain.conftest import untrained_oracle, untrained_pair
from tests.explain.killing import killed_once_begun

TEXT = "The value is returned by the function, and then"
ODD = ["<script>alert(1)</script>", "a, {b: 1} [c] 'd' \"e\" ${f} \\", "שלום, עולם", "a 😀\u200d b", "\ttab\nline\x00"]

QUICK = ("tasks_asked=[logit_lens]", "free_question=null", "batch_size=1")


@pytest.fixture(scope="module")
def oracle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "oracle"
    untrained_oracle().save(folder)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["explain", *words])
    __main__.main()


def test_what_a_killed_run_has_explained_is_not_asked_again(
    oracle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], explainer: Explainer,
) -> None:  # fmt: skip
    words = (*QUICK, f"oracle={oracle_dir}", f"text={TEXT}", "sites=layers")
    left, finished = killed_once_begun("diff_oracle.explain", words, tmp_path, tmp_path / "out")
    assert 1 <= finished < 6
    call(monkeypatch, *words, f"run_dir={tmp_path / 'out'}")
    assert (tmp_path / "out" / FILE).read_bytes().startswith(left)
    assert f"{finished}/6" in capsys.readouterr().err
    found = Explanations.load(tmp_path / "out")
    tasks = make_tasks({"logit_lens": {}})
    whole = explain(explainer.subject, explainer.oracle, TEXT, "layers", -1, tasks, free_question=None)
    assert [(item.site, item.answers) for item in found.items] == [(item.site, item.answers) for item in whole.items]


def test_after_an_interrupt_what_is_finished_stays(
    oracle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    words = (*QUICK, f"oracle={oracle_dir}", "text=one two", "sites=[L0,L1,L2]", f"run_dir={tmp_path / 'out'}")
    generate, calls = Reading.generate, []

    def interrupted(self: Reading, *args: Any, **kwargs: Any) -> list[str]:
        calls.append(args)
        if len(calls) == 4:  # each batch of one site has two lists: in the middle of the second batch
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "generate", interrupted)
        with pytest.raises(SystemExit) as left:
            call(patch, *words)
    assert left.value.code == 130
    assert (tmp_path / "out" / FILE).read_bytes().count(b"\n") == 1 + 1
    call(monkeypatch, *words)
    assert [item.site for item in Explanations.load(tmp_path / "out").items] == ["L0", "L1", "L2"]


def test_a_finished_run_is_only_shown_again_and_may_grow(
    oracle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*QUICK, f"oracle={oracle_dir}", f"text={TEXT}", f"run_dir={tmp_path}")
    call(monkeypatch, *words, "sites=[L0H1,L2]", "position=[-1,3]", "rank=skip_kl", "show=1")
    lines = capsys.readouterr().out.splitlines()
    paths = [str(tmp_path / f"explanations.{name}") for name in ("json", "parquet", "html")]
    assert lines[-3:] == paths
    found = Explanations.load(tmp_path)
    assert lines[-4] == f"{found.share_right:.1%} of {found.num_claims} claims are right"
    assert "1 of 4 shown, by skip_kl; show=N shows more" in lines
    assert [(item.position, item.site) for item in found.items] == [(p, s) for p in (10, 3) for s in ("L0H1", "L2")]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "explanations.parquet"), found.to_frame())

    def refuse(*args: object) -> None:
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "generate", refuse)
        capsys.readouterr()
        call(patch, *words, "sites=L2", "position=3", "save=[json]", "--json")
    assert capsys.readouterr().out == (tmp_path / "explanations.json").read_text(encoding="utf-8")
    assert Explanations.load(tmp_path).items == [
        item for item in found.items if (item.position, item.site) == (3, "L2")
    ]
    call(monkeypatch, *words, "sites=[L2,L4]", "position=3")
    assert [item.site for item in Explanations.load(tmp_path).items] == ["L2", "L4"]


def test_texts_are_data(oracle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ODD[1:]))
    words = (f"oracle={oracle_dir}", f"text={ODD[0]}", f"text_file={tmp_path / 'rows.jsonl'}", "free_question=null")
    call(monkeypatch, *words, "sites=L1", "tasks_asked=[attention]", f"run_dir={tmp_path / 'out'}")
    found = Explanations.load(tmp_path / "out")
    assert [text.text for text in found.texts] == [text.strip() for text in ODD]
    assert all("".join(text.tokens[1:]) == text.text for text in found.texts)
    assert [item.text for item in found.items] == list(range(len(ODD)))
    page = (tmp_path / "out" / "explanations.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page


@given(st.text(alphabet=st.sampled_from("a${}'\"\\[],:= \n<é😀#!@~()"), max_size=12))
@settings(max_examples=20, deadline=None)
def test_a_text_arrives_as_it_was_typed(text: str) -> None:
    (word,) = hydra_words([f"text={text}"])
    assert compose("explain", ExplainConfig, ["oracle=x", word]).text == text


@pytest.mark.parametrize(
    ("word", "names"),
    [("sites=L5H3", ["L5H3"]), ("sites=[L5H3,L7]", ["L5H3", "L7"]), ("sites=layers", ["layers"]),
     ("sites=L3:8", ["L3:8"]), ("sites.names=[heads]", ["heads"])],
)  # fmt: skip
def test_sites_are_named_as_they_are(word: str, names: list[str]) -> None:
    assert compose("explain", ExplainConfig, ["oracle=x", *hydra_words([word])]).sites.names == names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["text=a b", "rank=luck"], "unknown rank 'luck': choose from size, direct_effect, skip_kl"),
        (["text=a b", "output=xml"], "unknown output 'xml': choose from table, json"),
        (["text=a b", "save=[pdf]"], "unknown output 'pdf' in save: choose from json, parquet, html"),
        (["text=a b", "tasks_asked=[chess]"], "unknown task 'chess' in tasks_asked"),
        ([], "no text to explain"),
        (["text="], r"text 0 \(''\) has no position to explain"),
        (["text_file=nowhere.txt"], "No such file or directory: 'nowhere.txt'"),
        (["text_file=latin1.txt"], "latin1.txt is not UTF-8"),
        (["text=a b", "batch_size=0"], "batch_size must be at least 1, got 0"),
        (["text=a b", "oracle=nowhere"], "nowhere"),
        (["text=a b", "nla=nowhere"], "give either oracle=RUN, of diff_oracle.train, or nla=RUN"),
        (["text=a b", "oracle=null", "nla=nowhere"], "nowhere holds no diff-NLA"),
        (["text=a b", "oracle=null"], "give either oracle=RUN"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    words: list[str], said: str, oracle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    Path("latin1.txt").write_bytes("é".encode("latin1"))
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, f"oracle={oracle_dir}", "run_dir=out", *words)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(said, line)
    assert not Path("out").exists()


def test_another_oracle_or_text_is_no_continuation(
    oracle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    words = (*QUICK, f"oracle={oracle_dir}", f"run_dir={tmp_path}", "sites=L0")
    call(monkeypatch, *words, "text=one two three")
    with pytest.raises(SystemExit):
        call(monkeypatch, *words, "text=another")
    assert f"{tmp_path} holds explanations with another texts: choose another run_dir" in capsys.readouterr().err
    assert Explanations.load(tmp_path).texts[0].text == "one two three"


@pytest.fixture
def pair_run(tmp_path: Path) -> Path:
    """What `train_ar` leaves of a pair, whose oracle was trained with one task."""
    (tmp_path / "pair").mkdir()
    untrained_pair(untrained_oracle(attention={"num_asked": 2})).save(tmp_path / "pair" / "nla")
    return tmp_path / "pair"


def test_a_pair_is_named_by_its_run_and_not_confused_with_another(
    pair_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    words = (f"text={TEXT}", "sites=[L0,L1]", f"run_dir={tmp_path / 'out'}")
    said = "raises: the\nreads: by"
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "generate", lambda self, rows, *_: [said] * len(rows))
        call(patch, *words, f"nla={pair_run}")
    out = capsys.readouterr().out
    assert "rebuilt from" in out
    found = Explanations.load(tmp_path / "out")
    assert f"on average, the words carried {found.rebuilt['carried']:.1%} of a diff" in out
    assert {answer.task for item in found.items for answer in item.answers} == {
        "attention"
    }  # as its oracle was trained
    assert found.oracle == str(pair_run) and "carried" in found.conventions
    pair = DiffNLA.from_pretrained(pair_run / "nla")
    for item in found.items:
        assert item.rebuilt is not None and (item.explanation, len(item.explanation_claims)) == (said, 2)
        rebuilt = pair.reconstruct(said, item.site)
        (diff,) = diffs_of_text(Subject.load(pair.av.base), TEXT, [item.site], [-1])
        cosine = rebuilt @ diff.diff / np.linalg.norm(rebuilt) / np.linalg.norm(diff.diff)
        assert item.rebuilt.cosine == pytest.approx(cosine, abs=1e-4)

    with torch.no_grad():
        pair.ar.head.weight += 0.1
    pair.ar.save(pair_run / "nla" / "ar")
    with pytest.raises(SystemExit):
        call(monkeypatch, *words, f"nla={pair_run}")
    assert "holds explanations with another oracle" in capsys.readouterr().err
