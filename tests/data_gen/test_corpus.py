import shutil
from pathlib import Path

import pytest

from data_gen import corpus
from data_gen.corpus import CorpusConfig, Document, describe_corpus, iter_documents


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
    before = describe_corpus(config)
    (tmp_path / "a.txt").write_text("changed")
    assert describe_corpus(config) != before


def test_a_description_follows_ids_and_text_and_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "sub" / "a.txt").write_text("first")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def described(place: str) -> dict[str, object]:
        return describe_corpus(CorpusConfig(name="text_files", path=str(tmp_path / place)))

    assert described("here") == described("there")
    assert str(tmp_path) not in str(described("here"))
    (tmp_path / "there" / "sub").rename(tmp_path / "there" / "renamed")
    assert described("here") != described("there")
    # The same text as one file has other ids.
    assert len({str(described(place)) for place in ("here/sub", "here/sub/a.txt", "here")}) == 3


def test_pydoc_s_description_follows_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_corpus(CorpusConfig())
    assert before["documents"] > 2000 and before["python"].startswith("3.")
    documents = list(iter_documents(CorpusConfig()))
    changed = (*documents[:-1], Document(documents[-1].doc_id, documents[-1].text + "."))
    monkeypatch.setattr(corpus, "_pydoc_once", lambda: changed)
    after = describe_corpus(CorpusConfig())
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
