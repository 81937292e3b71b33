"""Any sharding, in any order, killed and gone on with, gives the same files; who wants a dataset gets it whole."""

import gc
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_gen import build as command
from data_gen.build import BuildConfig, SamplingConfig, SitesConfig, build, build_shard
from data_gen.corpus import CorpusConfig
from data_gen.measure import Window
from data_gen.shards import Shard, shard_of_process
from diff_oracle.records import is_dataset
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.subject.model import Subject

ROOT = Path(__file__).parents[2]
WORDS = "of shoes and ships and sealing wax of cabbages and kings why the sea is boiling hot whether pigs have wings"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.load(SubjectConfig(), "cpu")


@pytest.fixture(autouse=True)
def one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may commit while the tests run."""
    monkeypatch.setattr("data_gen.parts.git_commit", lambda: "0" * 40)


@pytest.fixture(autouse=True)
def root_logging() -> Iterator[None]:
    """Hydra replaces the root's handlers; pytest wants its own back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(f'{{"text": "Text number {i} speaks {WORDS}."}}\n' for i in range(150)))
    return file


@pytest.fixture
def config(texts: Path, tmp_path: Path) -> BuildConfig:
    return BuildConfig(
        corpus=CorpusConfig(name="text_files", path=str(texts)),
        sites=SitesConfig(per_position=2),
        sampling=SamplingConfig(context_length=24, positions_per_window=1, windows_per_document=1),
        tasks={"logit_lens": {"k": 3, "num_asked": 2}},
        data_dir=str(tmp_path / "data"),
    )


def words_of(config: BuildConfig) -> list[str]:
    """The command line that gives this config."""
    return [
        "+task=logit_lens", "tasks.logit_lens.k=3", "tasks.logit_lens.num_asked=2", "corpus=text_files",
        f"corpus.path={config.corpus.path}", "sites.per_position=2", "sampling.context_length=24",
        "sampling.positions_per_window=1", "sampling.windows_per_document=1", f"data_dir={config.data_dir}",
    ]  # fmt: skip


def start(config: BuildConfig, folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())} | environment
    arguments = [sys.executable, "-m", "data_gen.build", *words_of(config), *words]
    return subprocess.Popen(arguments, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def hashes_of(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def fake_measure(subject: Subject, windows: tuple[Window, ...], tasks: Any, allowed: Any) -> dict[str, list[Any]]:
    """Rows with the draws as they are, and nothing measured."""
    owners = [(window, p, site) for window in windows for p, site in window.queries]
    vectors = [[float(p)] * subject.d_model for _, p, _ in owners]
    ids = [window.token_ids[:3] for window, _, _ in owners]
    scores = [[1.0, 1.0, 1.0]] * len(owners)
    return {
        "doc_id": [window.doc_id for window, _, _ in owners],
        "split": [window.split for window, _, _ in owners],
        "site": [str(site) for _, _, site in owners],
        "position": [p for _, p, _ in owners],
        "token_ids": [window.token_ids[: p + 1] for window, p, _ in owners],
        **dict.fromkeys(("diff", "before"), vectors),
        **dict.fromkeys(("diff_norm", "before_norm"), [1.0] * len(owners)),
        **dict.fromkeys(("promoted_ids", "suppressed_ids"), ids),
        **dict.fromkeys(("promoted_scores", "suppressed_scores"), scores),
    }


@pytest.mark.parametrize("order", [["1/1"], ["3/3", "1/3", "2/3"], ["2/2", "1/2", "2/2"]])
def test_shards_in_any_order_give_the_files_of_one_job(
    config: BuildConfig, subject: Subject, order: list[str], tmp_path: Path
) -> None:
    whole = build(replace(config, data_dir=str(tmp_path / "whole")), subject)
    *early, last = list(dict.fromkeys(order))
    for shard in order:
        path, missing = build_shard(replace(config, shard=shard), subject)
        if shard in early:
            assert missing and shard not in missing and not path.exists()
        if shard == last and all(name in order for name in missing):
            break
    assert missing == [] and is_dataset(path)
    assert hashes_of(path) == hashes_of(whole)
    assert len(list(path.glob("*.parquet"))) == 3
    assert list((tmp_path / "data").iterdir()) == [path]


def test_another_sharding_goes_on_with_the_parts_of_the_first(config: BuildConfig, subject: Subject) -> None:
    path, missing = build_shard(replace(config, shard="2/3"), subject)
    assert missing == ["1/3", "3/3"]
    (part,) = path.parent.glob("*/*/*.parquet")
    written = part.stat().st_mtime_ns
    assert build(config, subject) == path
    assert (path / part.name).stat().st_mtime_ns == written


def test_who_needs_a_whole_dataset_is_told_what_is_missing(config: BuildConfig, subject: Subject) -> None:
    with pytest.raises(ValueError, match=r"is not whole yet: missing 1/3, 3/3\. .* and shard=1/3, shard=3/3 "):
        build(replace(config, shard="2/3"), subject)
    with pytest.raises(ValueError, match=r"is not whole yet: missing 3/3\. .* and shard=3/3 "):
        build(replace(config, shard="1/3"), subject)


documents = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([" ", "  ", "\t", " \n"])), min_size=1, max_size=20
).map(lambda drawn: [f"Text number {i} speaks {WORDS}".replace(" ", space) + space for i, space in drawn])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=documents, num_shards=st.integers(2, 5), data=st.data())
def test_no_document_and_no_text_is_in_two_splits_whatever_the_shards(
    texts: list[str],
    num_shards: int,
    data: st.DataObject,
    config: BuildConfig,
    subject: Subject,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "measure", fake_measure)
    monkeypatch.setattr(command, "_DOCUMENTS_PER_PART", 3)
    # The slowest steps of a build that measures nothing.
    monkeypatch.setattr(command, "label_tokens", lambda *_: torch.ones(subject.identity.vocab_size, dtype=torch.bool))
    monkeypatch.setattr(command, "token_texts", lambda _: ["token"] * subject.identity.vocab_size)
    folder = tmp_path_factory.mktemp("work")
    (folder / "texts").mkdir()
    for i, text in enumerate(texts):
        (folder / "texts" / f"{i:02d}.txt").write_text(text)
    config = replace(config, corpus=CorpusConfig(name="text_files", path=str(folder / "texts")))
    whole = build(replace(config, data_dir=str(folder / "whole")), subject)
    for index in data.draw(st.permutations(range(num_shards))):
        shard = replace(config, data_dir=str(folder / "sharded"), shard=str(Shard(index, num_shards)))
        path, _ = build_shard(shard, subject)
    assert hashes_of(path) == hashes_of(whole)
    rows = [row for file in path.glob("*.parquet") for row in pq.read_table(file, partitioning=None).to_pylist()]
    assert {row["doc_id"] for row in rows} == {f"{i:02d}.txt" for i in range(len(texts))}
    splits: dict[str, set[str]] = {}
    for row in rows:
        same_words = " ".join(texts[int(row["doc_id"].removesuffix(".txt"))].split())
        splits.setdefault(same_words, set()).add(row["split"])
        splits.setdefault(row["doc_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_a_killed_build_goes_on_at_its_last_whole_part(
    config: BuildConfig, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with start(config, tmp_path) as process:
        deadline = time.monotonic() + 120
        while not (found := list(tmp_path.glob("data/*.partial/whole/*.parquet"))) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "was done before it was killed"
    assert found
    written = {part.name: part.stat().st_mtime_ns for part in tmp_path.glob("data/*.partial/whole/*.parquet")}
    whole = build(replace(config, data_dir=str(tmp_path / "whole")), subject)
    capsys.readouterr()
    path = build(config, subject)
    assert f"| {64 * len(written)}/150 [00:00<" in capsys.readouterr().err
    assert hashes_of(path) == hashes_of(whole)
    assert {name: (path / name).stat().st_mtime_ns for name in written} == written
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [path.name]


def test_processes_of_one_launch_share_the_work(config: BuildConfig, subject: Subject, tmp_path: Path) -> None:
    launched = [start(config, tmp_path, WORLD_SIZE="2", RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    said = [process.communicate(timeout=240) for process in launched]
    assert [process.returncode for process in launched] == [0, 0], said
    (path,) = (tmp_path / "data").iterdir()
    assert any(f"data/{path.name}\n" in out for out, _ in said)
    whole = build(replace(config, data_dir=str(tmp_path / "whole")), subject)
    parts = {name: value for name, value in hashes_of(path).items() if name.endswith(".parquet")}
    assert parts.items() <= hashes_of(whole).items() and len(parts) == 3


def test_a_sweep_over_shards_ends_with_the_dataset_and_its_labels(
    config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["build", "-m", "shard=1/2,2/2", *words_of(config)])
    command.main()
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert (
        "is not whole yet: missing 2/2. Where no job is at work on them, build them with the same settings and "
        "shard=2/2 (" in first
    )
    assert "commonest top answers" in rest
    assert is_dataset(Path(rest.splitlines()[-1]))


def test_a_job_whose_dataset_another_job_closes_is_content(
    config: BuildConfig, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of the same shard: the second measures and closes everything while the first is at its first part."""
    measure = command.measure

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(command, "measure", measure)
        build(config, subject)
        return measure(*arguments)

    monkeypatch.setattr(command, "measure", overtaken)
    path, missing = build_shard(config, subject)
    assert missing == [] and is_dataset(path)
    assert list(path.parent.iterdir()) == [path]


def test_what_is_held_does_not_grow_with_the_corpus(
    texts: Path, config: BuildConfig, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure", fake_measure)
    monkeypatch.setattr(command, "_DOCUMENTS_PER_PART", 16)
    # What a build holds in any case would hide what grows.
    monkeypatch.setattr(command, "label_tokens", lambda *_: torch.ones(subject.identity.vocab_size, dtype=torch.bool))
    monkeypatch.setattr(command, "token_texts", lambda _: ["token"] * subject.identity.vocab_size)
    peaks, kept, label_distribution = [], [], command.label_distribution

    def watched(*arguments: Any) -> Any:
        """Reading labels leaves cyclic garbage of `datasets` behind; what counts is what stays."""
        peaks.append(tracemalloc.get_traced_memory()[1])
        before = tracemalloc.get_traced_memory()[0]
        lines = label_distribution(*arguments)
        gc.collect()
        kept.append(tracemalloc.get_traced_memory()[0] - before)
        return lines

    monkeypatch.setattr(command, "label_distribution", watched)
    for num_documents in (31, 32, 640):  # the first to fill caches
        text = f"{WORDS}. {'Of cabbages and kings. ' * 200}"
        texts.write_text("".join(f'{{"text": "{i} {text}"}}\n' for i in range(num_documents)))
        tracemalloc.start()
        build(config, subject)
        tracemalloc.stop()
    grown = texts.stat().st_size * 19 / 20
    assert peaks[2] - peaks[1] < grown / 10, (peaks, grown)  # other tests' threads and caches are in it, too
    assert kept[2] < kept[1] + 20_000, kept


@pytest.mark.parametrize("name", ["0/16", "17/16", "a/b", "3", "1/0", "1/2/3", "-1/2", ""])
def test_shards_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"shard(=| must be )"):
        BuildConfig(shard=name)


def test_a_process_of_several_takes_the_shard_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert shard_of_process("3/4") == "3/4"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert shard_of_process("1/1") == "3/4"
    with pytest.raises(ValueError, match=r"shard=1/2 together with 4 processes .*leave shard= out"):
        shard_of_process("1/2")


def test_shards_part_the_parts() -> None:
    for count in (1, 2, 7):
        owned = [[part for part in range(20) if Shard(index, count).owns(part)] for index in range(count)]
        assert sorted(part for parts in owned for part in parts) == list(range(20))
    assert Shard.parse("3/16") == Shard(2, 16) and str(Shard(2, 16)) == "3/16"
    assert Shard(0, 4).owners([5, 3, 1]) == ["2/4", "4/4"]
