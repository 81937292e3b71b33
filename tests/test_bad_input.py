"""What a person can get wrong ends in one line that says what to do, and leaves nothing half-written behind."""

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_gen import build
from diff_oracle import records

SMALL = ["+task=logit_lens", "sampling.max_documents=30", "sampling.windows_per_document=1", "data_dir=data"]
Refused = Callable[..., str]
# A build's own progress: its bars and the line that says where the dataset is.
PROGRESS = re.compile(
    r"(measuring|reading|Loading weights): +(\d+%\|.*|\d+ documents .*)\[.*\]"
    r"|dataset: (building \S+|\S+ \(already there\))"
)


def complaint(stderr: str) -> str:
    """The one line that stderr holds beside progress; a bar's states are apart by carriage returns."""
    lines = [line.strip() for line in re.split(r"[\r\n]", stderr)]
    lines = [line for line in lines if line and not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the build in an empty folder; gives the one line that it ends with, and checks that nothing is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str) -> str:
        before = set(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["build", *(arguments or SMALL)])
        with pytest.raises(SystemExit) as ended:
            build.main()
        assert ended.value.code == 2
        assert {p for p in tmp_path.rglob("*") if p.is_file()} <= before
        return complaint(capsys.readouterr().err)

    return run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sites.names=[L99]", "site 'L99' is out of range"),
        ("sites.names=[L2H64]", "'L2H64' is out of range"),
        ("sites.names=[L3-8]", "'L3-8'"),
        ("sampling.max_document=3", "did you mean 'sampling.max_documents'?"),
        ("sampling.max_documents=few", "sampling.max_documents"),
        ("sites.names=[]", "sites.names is empty"),
        ("sites.per_position=0", "sites.per_position must be at least 1"),
        ("sampling.context_length=8", "must be below sampling.context_length=8"),
        ("tasks.logit_lens.num_asked=11", "num_asked must be 1…k = 10, got 11"),
        ("corpus.name=books", "unknown corpus 'books': choose from pydoc, text_files, hub"),
        ("model.path=nowhere model.source=local", "model.path=nowhere is no directory"),
        ("model.source=attic", "unknown model.source 'attic'"),
        ("model=random model.architecture=rnn", "unknown model.architecture 'rnn': choose from llama"),
    ],
)
def test_wrong_settings(refused: Refused, override: str, said: str) -> None:
    assert said in refused(*SMALL, *override.split())


def test_unknown_and_missing_tasks_are_answered_with_the_list(refused: Refused) -> None:
    assert (
        refused("data_dir=data")
        == "error: no task: add +task=NAME (choose from attention, explanation, layer_skip, logit_lens)"
    )
    assert (
        refused("+task=rhyme", "data_dir=data")
        == "error: unknown task 'rhyme': choose from attention, explanation, layer_skip, logit_lens"
    )


def test_text_that_cannot_be_used(refused: Refused, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    corpus = ["corpus=text_files", f"corpus.path={text}"]
    assert "is empty" in refused(*SMALL, *corpus)
    (text / "short.txt").write_text("Too short.")
    assert "shorter than sampling.min_position + 1 tokens" in refused(*SMALL, *corpus)
    (text / "short.txt").write_bytes(b"caf\xe9 " * 100)
    assert "short.txt is not UTF-8 (byte 3): convert it" in refused(*SMALL, *corpus)


def test_a_full_disk(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records.pq, "write_table", full)
    assert "no space left on device" in refused()


def test_a_folder_in_the_way_of_the_dataset(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "config_hash", lambda content: "0" * 12)
    (tmp_path / "data" / "tiny-pydoc-000000000000").mkdir(parents=True)
    assert "tiny-pydoc-000000000000 is in the way: it is no dataset" in refused()


def test_a_dataset_that_was_damaged_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diff_oracle import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["build", *SMALL])
    build.main()
    (part,) = tmp_path.glob("data/*/part-00000.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    monkeypatch.setattr(sys, "argv", ["train", *SMALL, "+debug=smoke", "run_dir=run", "sampling.max_documents=30",
                                      "sampling.windows_per_document=1"])  # fmt: skip
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main()
    assert "part-00000.parquet is missing or corrupt: delete" in complaint(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
