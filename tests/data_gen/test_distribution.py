"""The table of labels against counting by hand, and a card that survives any token."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from markdown_it import MarkdownIt

from data_gen.build import BuildConfig, SamplingConfig, SitesConfig, build
from data_gen.card import code, dataset_card
from data_gen.distribution import label_distribution, print_distribution, useless
from data_gen.parts import CARD
from diff_oracle.records import CONVENTIONS, MANIFEST, schema
from diff_oracle.tasks import Task, make_tasks
from tests.toy_dataset import COLUMNS, toy_rows

ODD = [
    "| a | b",
    "`x`",
    "``",
    "\n\n# title",
    "<script>alert(1)</script>",
    "*b*_c_",
    "\\",
    " ",
    "[l](u)",
    "<!--",
    "'",
    "\u2028",
    "$x$",
]
TASKS: list[Task] = make_tasks({"logit_lens": {"k": 2, "num_asked": 1}})


def write_part(file: Path, rows: list[tuple[str, str, int]]) -> Path:
    """A part of (site, split, top token) rows."""
    columns = toy_rows([split for _, split, _ in rows])
    columns["site"] = [site for site, _, _ in rows]
    columns["promoted_ids"] = [[top, 0] for _, _, top in rows]
    columns["token_ids"] = [list(range(len(ODD)))] * len(rows)
    pq.write_table(pa.table({f.name: pa.array(columns[f.name], type=f.type) for f in COLUMNS}, schema=COLUMNS), file)
    return file


def test_counts_by_hand(tmp_path: Path) -> None:
    files = [
        write_part(tmp_path / "0", [("L0", "train", 4), ("L0", "train", 4), ("L0", "test", 4), ("L0", "test", 5)]),
        write_part(tmp_path / "1", [("L0", "train", 5), ("L1H2", "test", 4), ("L1", "train", 6), ("L1", "select", 6)]),
    ]
    lines = label_distribution(files, TASKS, [f"t{i}" for i in range(9)])
    assert [(line["sites"], line["rows"], line["labelled"], line["trivial"]) for line in lines] == [
        ("all", 8, 8, 5),
        ("layers", 7, 7, 5),  # L0: the three of token 4, its commonest in training; L1: both
        ("heads", 1, 1, 0),  # no training row, so nothing that would be usual
        ("L0", 5, 5, 3),
        ("L1", 2, 2, 2),
        ("L1H2", 1, 1, 0),
    ]
    assert lines[0]["commonest"] == [["'t4'", 4], ["'t5'", 2], ["'t6'", 2]]
    assert json.loads(json.dumps(lines)) == lines


def test_many_sites_are_told_in_groups_only(tmp_path: Path) -> None:
    file = write_part(tmp_path / "0", [(f"L{i}", "train", i) for i in range(13)])
    assert [line["sites"] for line in label_distribution([file], TASKS, ["t"] * 13)] == ["all", "layers"]


def test_words_and_rows_without_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = make_tasks({"logit_lens": {}})
    monkeypatch.setattr(task, "top_answer", lambda labels: "only the sink" if labels["promoted_ids"][0] == 1 else None)
    file = write_part(tmp_path / "0", [("L0", "train", 1), ("L0", "test", 2), ("L0", "test", 1)])
    line, *_ = label_distribution([file], [task], [])
    assert (line["rows"], line["labelled"], line["trivial"]) == (3, 2, 2)
    assert line["commonest"] == [["only the sink", 2]]


def test_mostly_trivial_labels_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("L0", "train", 4)] * 9 + [("L0", "train", 5), ("L1.mlp", "train", 4), ("L1.mlp", "train", 5)]
    lines = label_distribution([write_part(tmp_path / "0", rows)], TASKS, ["[red]"] * 9)
    (warning, other) = useless(lines, {"train": 12, "select": 1, "test": 1})
    assert warning.startswith("logit_lens: 83% of the labels of all are trivial")
    assert other.startswith("logit_lens: 90% of the labels of layers are trivial")
    print_distribution(lines)
    assert "'[red]' 10" in capsys.readouterr().out  # no markup of rich's


def test_splits_without_rows_and_tasks_without_labels_are_warned_of() -> None:
    line = {"task": "attention", "sites": "all", "rows": 9, "labelled": 0, "trivial": 0, "commonest": []}
    no_test, no_label = useless([line], {"train": 8, "select": 1, "test": 0})
    assert no_test.startswith("no test rows: use more documents")
    assert no_label == "attention: no row has a label at these sites"


def card_of(tmp_path: Path, columns: pa.Schema = COLUMNS) -> str:
    file = write_part(
        tmp_path / "0", [(site, "train", i) for i, site in enumerate(["L0", "L0:2", "L1.attn", "L1.mlp", "L1H0"])]
    )
    manifest = {
        "schema_version": 2,
        "subject": {"name": "`toy`", "weights_hash": "w", "tokenizer_hash": "t", "architecture": "Toy", "n_layers": 2,
                    "n_heads": 2, "d_model": 4, "dtype": "float32"},
        "model": {"source": "bundled", "hub_id": None, "name": "a|b"},
        "corpus": {"name": "text_files", "documents": 5},
        "tasks": {"logit_lens": {"k": 2}},
        "conventions": CONVENTIONS,
        "counts": {"documents": 5, "train": 5, "select": 0, "test": 0},
        "labels": label_distribution([file], TASKS, ODD),
        "package_version": "0",
        "git_commit": None,
    }  # fmt: skip
    return dataset_card("toy-123", manifest, columns, [file], ODD)


def test_odd_tokens_are_shown_as_they_are_and_nothing_else(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front) == {
        "pretty_name": "toy-123",
        "tags": ["interpretability", "diff_oracle", "logit_lens"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}],
    }
    tokens = MarkdownIt().enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or []]
    assert not any(token.type.startswith("html") for token in [*tokens, *inline])
    assert [token.type for token in inline if token.type in ("link_open", "image")] == []
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["toy-123", "Loading", "Columns", "How it was measured", "Counts", "Labels", "Examples"]
    shown = {child.content for child in inline if child.type == "code_inline"}
    assert repr("".join(ODD[:-1])) in shown and repr(ODD[-1]) in shown  # the context and the token at the position
    assert {repr(text) for text in ODD[:5]} <= shown  # the label table and the examples
    widths = {row.count("th_open") or row.count("td_open") for row in rows_of_tables(tokens)}
    assert widths == {2, 3, 6}


def rows_of_tables(tokens: list[Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif rows:
            rows[-1].append(token.type)
    return rows


@pytest.mark.parametrize("text", [*ODD, "`", "a`b``c", "` `", "x`"])
def test_a_code_span_shows_any_line(text: str) -> None:
    text = text.replace("\n", "\\n")
    (inline,) = (token for token in MarkdownIt().parse(f"x {code(text)} y") if token.type == "inline")
    (span,) = (child for child in inline.children or [] if child.type == "code_inline")
    assert span.content.strip() == text.strip()


def test_a_built_dataset_has_its_card_and_its_labels_and_loads_as_the_card_says(tmp_path: Path) -> None:
    config = BuildConfig(
        sampling=SamplingConfig(max_documents=12, windows_per_document=1, positions_per_window=1),
        sites=SitesConfig(["L0", "L1.attn", "L2.mlp", "L3H1"], per_position=None),
        tasks={name: {} for name in ("logit_lens", "attention", "layer_skip")},
        data_dir=str(tmp_path / "data"),
    )
    path = build(config)
    manifest, card = json.loads((path / MANIFEST).read_text()), (path / CARD).read_text()
    lines = {(line["task"], line["sites"]): line for line in manifest["labels"]}
    assert lines["attention", "mlp"]["labelled"] == 0 < lines["attention", "mlp"]["rows"]
    assert lines["layer_skip", "L0"]["labelled"] == lines["layer_skip", "L0"]["rows"]
    assert str(tmp_path) not in card + json.dumps(manifest)
    assert all(f"`{name}`" in card for name in schema(128, config.tasks).names)
    assert card.count("- promoted: ") == card.count("- kl: ") == 4 > card.count("- sink_weight: ") == 3
    rows = datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"), split="train")
    assert len(rows) == sum(part["rows"] for part in manifest["parts"])
