"""A built dataset holds what was measured, the same bytes each time, and nothing after a failure."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_gen.build import BuildConfig, SamplingConfig, SitesConfig, build, build_shard
from data_gen.corpus import CorpusConfig, pydoc_documents
from diff_oracle.records import MANIFEST, open_dataset, split_of
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.subject.model import Subject


@pytest.fixture
def small_config(tmp_path: Path) -> Callable[..., BuildConfig]:
    def make(**changes: Any) -> BuildConfig:
        config = BuildConfig(
            sampling=SamplingConfig(max_documents=40, windows_per_document=2, positions_per_window=2),
            sites=SitesConfig(per_position=3),
            tasks={"logit_lens": {"k": 5, "num_asked": 3}},
            data_dir=str(tmp_path / "data"),
        )
        for name, value in changes.items():
            setattr(config, name, value)
        return config

    return make


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def hashes_of(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("*.parquet")}


def test_rows_equal_a_slow_computation_with_plain_transformers(small_config: Callable[..., BuildConfig]) -> None:
    rows = rows_of(build(small_config(sites=SitesConfig(["layers", "spans"], 3))))
    loaded = load_hf_model(SubjectConfig())
    model, tokenizer = loaded.model, loaded.tokenizer
    eps, gamma = model.config.rms_norm_eps, model.model.norm.weight.detach().numpy()
    unembedding = model.get_output_embeddings().weight.detach().numpy()
    special = set(tokenizer.all_special_ids)
    outputs: dict[int, torch.Tensor] = {}
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(
            lambda _, __, out, index=index: outputs.__setitem__(index, out[0] if isinstance(out, tuple) else out)
        )
    for row in rows[:: max(1, len(rows) // 12)]:
        with torch.no_grad():
            embedded = model.get_input_embeddings()(torch.tensor([row["token_ids"]]))[0]
            model(torch.tensor([row["token_ids"]]))
        residual = [embedded, *(outputs[i].reshape(embedded.shape) for i in range(model.config.num_hidden_layers))]
        first, _, end = row["site"].removeprefix("L").partition(":")
        start, stop = int(first), int(end or int(first) + 1)
        position = row["position"]
        diff = (residual[stop] - residual[start])[position].numpy()
        np.testing.assert_allclose(row["diff"], diff, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(row["before"], residual[start][position].numpy(), rtol=1e-3, atol=1e-4)
        assert row["diff_norm"] == pytest.approx(np.linalg.norm(diff), rel=1e-3)
        last = residual[-1][position].numpy()
        sigma = math.sqrt(float((last**2).mean()) + eps)
        shift = unembedding @ (diff * gamma / sigma)
        shift = shift - shift.mean()
        for ids, scores, sign in (
            (row["promoted_ids"], row["promoted_scores"], 1),
            (row["suppressed_ids"], row["suppressed_scores"], -1),
        ):
            np.testing.assert_allclose(scores, shift[ids], rtol=2e-3, atol=1e-3)
            assert not set(ids) & special
            stronger = [i for i in np.argsort(-sign * shift)[:60] if sign * shift[i] > sign * shift[ids[-1]] + 1e-3]
            left_out = [i for i in stronger if i not in ids]
            assert not any(tokenizer.decode([i]).isprintable() and tokenizer.decode([i]).strip() and i not in special
                           and "\ufffd" not in tokenizer.decode([i]) for i in left_out)  # fmt: skip


def test_same_config_same_bytes_and_another_seed_other_rows(
    small_config: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    first = build(small_config())
    again = build(small_config(data_dir=str(tmp_path / "elsewhere")))
    other = build(small_config(seed=1))
    assert first.name == again.name != other.name
    assert hashes_of(first) == hashes_of(again) != hashes_of(other)


def test_what_stands_is_not_measured_again(
    small_config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("wrapped a model for nothing")

    first = build(small_config())
    written = (first / MANIFEST).stat().st_mtime_ns
    monkeypatch.setattr("data_gen.build.Subject.__init__", refuse)
    assert build(small_config()) == first
    assert (first / MANIFEST).stat().st_mtime_ns == written


@pytest.mark.parametrize(("max_documents", "total"), [(3, 3), (40, 5)])
def test_the_progress_bar_knows_how_much_there_is(
    small_config: Callable[..., BuildConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    max_documents: int,
    total: int,
) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(5):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"Text number {i} speaks of shoes and ships and sealing wax. " * 3)
    corpus = CorpusConfig(name="text_files", path=str(tmp_path / "texts"))
    build(small_config(corpus=corpus, sampling=SamplingConfig(max_documents=max_documents)))
    assert f"| {total}/{total} [" in capsys.readouterr().err


def test_one_long_file_has_rows_in_every_split(small_config: Callable[..., BuildConfig], tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Chapter {i}. " + "Of shoes and ships and sealing wax. " * 30 for i in range(40)))
    rows = rows_of(build(small_config(corpus=CorpusConfig(name="text_files", path=str(book)))))
    assert {row["split"] for row in rows} == {"train", "select", "test"}


def test_splits_follow_the_documents_text_alone(small_config: Callable[..., BuildConfig]) -> None:
    rows = rows_of(build(small_config()))
    texts = {d.doc_id: d.text for d in pydoc_documents()}
    assert all(row["split"] == split_of(texts[row["doc_id"]]) for row in rows)
    assert {row["split"] for row in rows} == {"train", "select", "test"}
    bos = load_hf_model(SubjectConfig()).tokenizer.bos_token_id
    for row in rows:
        assert row["token_ids"][0] == bos
        assert len(row["token_ids"]) == row["position"] + 1 <= 96
        assert row["position"] >= 8


def test_one_text_under_two_names_is_in_one_split(small_config: Callable[..., BuildConfig], tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        words = f"Text number {i} speaks of many things, of shoes and ships and sealing wax, cabbages and kings."
        (folder / f"a{i}.txt").write_text(words)
        (folder / f"b{i}.txt").write_text(words.replace(" ", "  ") + "\n")
    rows = rows_of(build(small_config(corpus=CorpusConfig(name="text_files", path=str(folder)))))
    splits = {row["doc_id"]: row["split"] for row in rows}
    assert len(splits) == 40
    assert all(splits[f"a{i}.txt"] == splits[f"b{i}.txt"] for i in range(20))


def test_the_manifest_says_what_was_measured_and_opens_for_this_subject_only(
    small_config: Callable[..., BuildConfig],
) -> None:
    path = build(small_config())
    manifest = json.loads((path / MANIFEST).read_text())
    loaded = load_hf_model(SubjectConfig())
    assert manifest["subject"] == loaded.identity.to_dict()
    assert manifest["counts"]["windows"] > 0
    assert sum(part["rows"] for part in manifest["parts"]) == len(rows_of(path))
    assert manifest["model"]["source"] == "bundled"
    dataset = open_dataset(path, loaded.identity.weights_hash, loaded.identity.tokenizer_hash)
    assert len(dataset.split("train")) == manifest["counts"]["train"]
    other = load_hf_model(SubjectConfig(source="random", architecture="llama")).identity
    with pytest.raises(ValueError, match="another subject"):
        open_dataset(path, other.weights_hash, other.tokenizer_hash)


def test_failures_leave_nothing_behind(small_config: Callable[..., BuildConfig], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    corpus = CorpusConfig(name="text_files", path=str(tmp_path / "short.txt"))
    with pytest.raises(ValueError, match=r"shorter than sampling.min_position"):
        build(small_config(corpus=corpus))
    subject = Subject.load(SubjectConfig(), "cpu")
    with torch.no_grad():
        subject.hf_model.get_input_embeddings().weight[300] = math.nan
    (tmp_path / "short.txt").write_text(subject.tokenizer.decode(list(range(260, 360))))
    with pytest.raises(ValueError, match=r"(?i)not finite|nan"):
        build(small_config(corpus=corpus), subject)
    with pytest.raises(ValueError, match="out of range"):
        build(small_config(sites=SitesConfig(["L99"])))
    assert list((tmp_path / "data").rglob("*")) == []


def test_null_takes_every_site_at_every_position(small_config: Callable[..., BuildConfig]) -> None:
    sites = SitesConfig(["layers", "L3H2", "L0:2", "L1"], per_position=None)
    rows = rows_of(build(small_config(sites=sites, sampling=SamplingConfig(max_documents=3))))
    by_position: dict[tuple[str, int, int], list[str]] = {}
    for row in rows:
        by_position.setdefault((row["doc_id"], row["position"], hash(tuple(row["token_ids"]))), []).append(row["site"])
    assert all(sites == ["L0", "L1", "L2", "L3", "L4", "L5", "L3H2", "L0:2"] for sites in by_position.values())


def test_sites_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sites.names is empty: name at least one"):
        SitesConfig(names=[])
    with pytest.raises(ValueError, match=r"sites.per_position must be at least 1, or null for all .*, got 0"):
        SitesConfig(per_position=0)


def test_sampling_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling.min_position=96 must be below"):
        SamplingConfig(min_position=96)
    with pytest.raises(ValueError, match=r"sampling.max_documents must be at least 1, got 0"):
        SamplingConfig(max_documents=0)


def test_a_part_that_the_disk_damaged_is_removed_and_measured_anew(
    small_config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_gen.build._DOCUMENTS_PER_PART", 20)
    expected = build(small_config(data_dir=str(Path(small_config().data_dir) / "expected")))
    build_shard(small_config(shard="1/2"))
    (part,) = Path(small_config().data_dir).glob("*.partial/whole/part-00000.parquet")
    content = bytearray(part.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    part.write_bytes(content)
    with pytest.raises(ValueError, match="part-00000.parquet was damaged on the disk and is removed: run the same"):
        build(small_config())
    assert hashes_of(build(small_config())) == hashes_of(expected)


def test_datasets_in_the_corpus_are_refused(small_config: Callable[..., BuildConfig], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Of shoes and ships and sealing wax. " * 9)
    with pytest.raises(ValueError, match="datasets would be read as text; choose another data_dir"):
        build(small_config(corpus=CorpusConfig(name="text_files", path=str(tmp_path))))
