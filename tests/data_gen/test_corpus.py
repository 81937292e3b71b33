from pathlib import Path

import pytest

from data_gen.corpus import CorpusConfig, describe_corpus, iter_documents


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
