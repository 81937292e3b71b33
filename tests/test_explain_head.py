"""The command that explains one site over many texts."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from diff_oracle import explain_head
from diff_oracle.explain import Explanations
from diff_oracle.explain.store import FILE
from diff_oracle.oracle.reading import Reading
from diff_oracle.records import split_of
from tests.explain.conftest import untrained_oracle
from tests.explain.killing import killed_once_begun


@pytest.fixture(scope="module")
def oracle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "oracle"
    untrained_oracle().save(folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A corpus of short documents; most are in split `train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    documents = {
        f"{i}.txt": f"Document {i} says \x1b[31m that the value is returned, and then none." for i in range(30)
    }
    Path("texts").mkdir()
    for name, text in documents.items():
        Path("texts", name).write_text(text)
    return documents


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["explain_head", "corpus=text_files", "corpus.path=texts", *words])
    explain_head.main()


def test_a_site_over_the_documents_that_training_did_not_see(
    oracle_dir: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tasks_asked=[logit_lens]", "free_question=null", "sampling.positions_per_window=2", "run_dir=out")
    call(monkeypatch, f"oracle={oracle_dir}", "head=L3H2", *words, "rank=skip_kl", "show=2")
    out = capsys.readouterr().out
    summary, found = json.loads(Path("out/summary.json").read_text()), Explanations.load("out")
    unseen = {text for text in texts.values() if split_of(text) == "test"}
    assert {text.text for text in found.texts} == unseen
    assert {item.site for item in found.items} == {"L3H2"} and min(item.position for item in found.items) >= 8
    assert (summary["site"], summary["num_texts"], summary["num_explained"]) == ("L3H2", len(unseen), 2 * len(unseen))
    (best, _) = summary["examples"]
    assert best["size"] == max(item.skip_kl for item in found.items)
    assert f"L3H2 at {2 * len(unseen)} places of {len(unseen)} texts" in out
    assert "Raises?" in out and "where it is strongest, by skip_kl" in out and "\x1b" not in out
    assert out.endswith("out/summary.json\nout/explanations.json\nout/explanations.parquet\nout/explanations.html\n")


def test_a_layer_over_documents(
    oracle_dir: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tasks_asked=[logit_lens]", "free_question=null", "sampling.positions_per_window=1", "run_dir=out")
    call(monkeypatch, f"oracle={oracle_dir}", "head=L2", *words)
    assert {item.site for item in Explanations.load("out").items} == {"L2"}
    assert json.loads(Path("out/summary.json").read_text())["site"] == "L2"
    assert "L2 at " in capsys.readouterr().out


def test_what_a_killed_run_has_explained_is_not_asked_again(
    oracle_dir: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"oracle={oracle_dir}", "head=L3H2", "tasks_asked=[logit_lens]", "free_question=null", "batch_size=1")
    words += ("sampling.positions_per_window=1", "corpus=text_files", "corpus.path=texts")
    left, finished = killed_once_begun("diff_oracle.explain_head", words, Path.cwd(), Path.cwd() / "out")
    number = sum(split_of(text) == "test" for text in texts.values())
    assert 1 <= finished < number
    generate, asked = Reading.generate, []

    def interrupted(self: Reading, *args: Any) -> list[str]:
        asked.append(args)
        if len(asked) == 4:  # each place is asked for two lists: in the midst of the second place
            raise KeyboardInterrupt
        return generate(self, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Reading, "generate", interrupted)
        call(patch, *words, "run_dir=out")
    assert ended.value.code == 130
    assert Path("out", FILE).read_bytes().startswith(left)
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "generate", lambda self, *args: asked.append(args) or generate(self, *args))
        call(patch, *words, "run_dir=out")
    assert f"{finished + 1}/{number}" in capsys.readouterr().err
    assert len(asked) == 2 * (number - finished - 1)
    assert [item.text for item in Explanations.load("out").items] == list(range(number))
    assert json.loads(Path("out/summary.json").read_text())["num_explained"] == number


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["head=heads"], "malformed site 'heads'"),
        (["head=L9"], "site 'L9' is out of range"),
        (["head=L0", "split=all"], "unknown split 'all': choose from train, select, test"),
        (["head=L0", "rank=luck"], "unknown rank 'luck'"),
        (["head=L0", "show=-1"], "show must be at least 0, got -1"),
        (["head=L0", "save=[pdf]"], "unknown output 'pdf' in save: choose from json, parquet, html"),
        (["head=L0", "sampling.min_position=60"], "no document of split test has more than 60 tokens"),
        ([], "no value for 'head': add head=VALUE"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    words: list[str], said: str, oracle_dir: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, f"oracle={oracle_dir}", "run_dir=out", *words)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(re.escape(said), line)
