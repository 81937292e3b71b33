import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_gen import corpus
from data_gen.corpus import CorpusConfig, Document, describe_corpus, iter_documents

ALL = 10**9


def test_pydoc_has_many_documents_with_distinct_stable_ids() -> None:
    documents = list(iter_documents(CorpusConfig()))
    ids = [d.doc_id for d in documents]
    assert len(ids) > 2000
    assert len(set(ids)) > 0.99 * len(ids)
    assert ids[0].startswith("topics/")
    assert any(d.doc_id == "docstrings/json" for d in documents)
    assert ids == [d.doc_id for d in iter_documents(CorpusConfig())]


def test_text_files_are_read_in_order_and_their_content_is_in_the_description(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "empty.txt").write_text("  \n")
    config = CorpusConfig(name="text_files", path=str(tmp_path))
    assert [(d.doc_id, d.text) for d in iter_documents(config)] == [("a.txt", "first"), ("b.txt", "second")]
    before = describe_corpus(config, ALL)
    (tmp_path / "a.txt").write_text("changed")
    assert describe_corpus(config, ALL) != before


def test_a_description_follows_ids_and_text_and_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "sub" / "a.txt").write_text("first")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def described(place: str) -> dict[str, object]:
        return describe_corpus(CorpusConfig(name="text_files", path=str(tmp_path / place)), ALL)

    assert described("here") == described("there")
    assert str(tmp_path) not in str(described("here"))
    (tmp_path / "there" / "sub").rename(tmp_path / "there" / "renamed")
    assert described("here") != described("there")
    # The same text as one file has other ids.
    assert len({str(described(place)) for place in ("here/sub", "here/sub/a.txt", "here")}) == 3


def test_pydoc_s_description_follows_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_corpus(CorpusConfig(), ALL)
    assert before["documents"] > 2000 and before["python"].startswith("3.")
    documents = list(iter_documents(CorpusConfig()))
    changed = (*documents[:-1], Document(documents[-1].doc_id, documents[-1].text + "."))
    monkeypatch.setattr(corpus, "_pydoc_once", lambda: changed)
    after = describe_corpus(CorpusConfig(), ALL)
    assert after["sha256"] != before["sha256"]
    assert {key for key in before if before[key] != after[key]} == {"sha256"}


def test_one_file_is_cut_between_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    paragraphs = [f"    Paragraph {i} begins.\n" + "It goes on and on. " * 20 + "Here it ends." for i in range(20)]
    file.write_text("\n \n\n".join(paragraphs) + "\n")
    documents = list(iter_documents(CorpusConfig(name="text_files", path=str(file))))
    assert [d.doc_id for d in documents] == [f"book.txt#{i}" for i in range(6)]
    assert "\n\n".join(d.text for d in documents) == "\n\n".join(paragraphs).strip()
    assert [d.text.count("begins") for d in documents] == [3, 3, 3, 3, 3, 5]  # the last two were too short alone
    assert all(len(d.text) >= 1000 for d in documents)
    file.write_text("Short.\n\nAnd shorter.")
    documents = list(iter_documents(CorpusConfig(name="text_files", path=str(file))))
    assert documents == [Document("book.txt#0", "Short.\n\nAnd shorter.")]


def test_text_behind_the_documents_that_are_read_is_not_in_the_description(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "first"}\n{"text": "second"}\n')
    config = CorpusConfig(name="text_files", path=str(file))
    before = describe_corpus(config, 2)
    assert before["documents"] == 2 and describe_corpus(config, 1)["documents"] == 1
    with file.open("a") as stream:
        stream.write("no JSON\n")
    assert describe_corpus(config, 2) == before


def hub(monkeypatch: pytest.MonkeyPatch, rows: Iterable[dict[str, Any]]) -> CorpusConfig:
    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Iterable[dict[str, Any]]:
        assert (name, config, split, streaming) == ("org/texts", "small", "train", True)
        return rows

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return CorpusConfig(name="hub", hub_name="org/texts", hub_config="small", text_column="body")


def test_a_dataset_on_the_hub_is_read_as_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    config = hub(monkeypatch, ({"body": f" text {i} " if i != 1 else " "} for i in itertools.count()))
    documents = list(itertools.islice(iter_documents(config), 2))
    assert documents == [Document("org/texts/train/0", "text 0"), Document("org/texts/train/2", "text 2")]
    assert describe_corpus(config, ALL)["hub_name"] == "org/texts"


def test_what_can_be_wrong_with_a_dataset_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"add corpus.hub_name=ID"):
        list(iter_documents(CorpusConfig(name="hub")))
    with pytest.raises(ValueError, match=r"org/texts row 0 has no column 'body': choose .* from id, text"):
        list(iter_documents(hub(monkeypatch, [{"id": 1, "text": "x"}])))
    with pytest.raises(ValueError, match=r"org/texts row 0: column 'body' holds a float"):
        list(iter_documents(hub(monkeypatch, [{"body": 1.5}])))

    def lost() -> Iterator[dict[str, Any]]:
        yield {"body": "first"}
        raise ConnectionError("Server Disconnected\nand more")

    documents = iter_documents(hub(monkeypatch, lost()))
    assert next(documents).text == "first"
    with pytest.raises(
        ValueError, match=r"cannot read 'org/texts' .*\(Server Disconnected\): check .* network"
    ) as caught:
        next(documents)
    assert "\n" not in str(caught.value)


def test_the_hub_without_network_is_one_line() -> None:
    """The tests run offline: this is the real library's answer."""
    with pytest.raises(ValueError, match=r"cannot read 'nobody/nothing' from the Hugging Face hub .*HF_HUB_OFFLINE"):
        list(iter_documents(CorpusConfig(name="hub", hub_name="nobody/nothing")))


def test_bad_corpora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown corpus 'books': choose from pydoc"):
        list(iter_documents(CorpusConfig(name="books")))
    with pytest.raises(ValueError, match=r"add corpus.path="):
        list(iter_documents(CorpusConfig(name="text_files")))
    with pytest.raises(ValueError, match="does not exist"):
        list(iter_documents(CorpusConfig(name="text_files", path=str(tmp_path / "none"))))
    with pytest.raises(ValueError, match="is empty"):
        list(iter_documents(CorpusConfig(name="text_files", path=str(tmp_path))))
    (tmp_path / "latin.txt").write_bytes("voilà".encode("latin1"))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 \(byte 4\)"):
        list(iter_documents(CorpusConfig(name="text_files", path=str(tmp_path))))
