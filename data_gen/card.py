"""The dataset card: README.md in the dataset's folder, for people and for the Hugging Face hub. Beside the manifest.

Written from the manifest and the first part alone, so the same dataset has the same card. Tokens stand in code spans,
written as Python writes strings: nothing in them can be taken for Markdown or HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from data_gen.distribution import HEADER, cells, useless
from diff_oracle.records import LABEL_COLUMNS, SPLITS
from diff_oracle.subject.sites import DiffSite

_COLUMNS = {
    "doc_id": "the document",
    "split": "train, select or test: by hash of the document's text",
    "site": "which diff: `L7` a block, `L3:8` the blocks 3 to 7, `L7.attn` and `L7.mlp` its halves, `L7H3` a head",
    "position": "token index in the context",
    "token_ids": "the context 0…position, as the model saw it",
    "diff": "what the site added to the residual stream there, raw",
    "before": "the residual that it was added to",
    "diff_norm": "‖diff‖",
    "before_norm": "‖before‖",
}
# `split: train` is what load_dataset calls files without splits; the split of a row is a column.
_TEMPLATE = jinja2.Template(
    """\
---
pretty_name: {{ name | tojson }}
tags:
{%- for tag in tags %}
- {{ tag | tojson }}
{%- endfor %}
size_categories:
- {{ size }}
configs:
- config_name: default
  data_files:
  - split: train
    path: "*.parquet"
---

# {{ name }}

Steps of a transformer and what they did. Each row is one *diff*: what one site (a block, a span of blocks, an attention
or MLP part, one head) added to the residual stream at one position of a text, with labels measured on the model.

- Model: {{ model }}; {{ subject.architecture }}, {{ subject.n_layers }} layers of {{ subject.n_heads }} heads, width
  {{ subject.d_model }}, run in {{ subject.dtype }}
- Weights `{{ subject.weights_hash }}`, tokenizer `{{ subject.tokenizer_hash }}`
- Text: {{ corpus }}
- Made by diff_oracle {{ manifest.package_version }}, commit {{ manifest.git_commit }}, schema
  {{ manifest.schema_version }}; every setting is in `manifest.json`

## Loading

```python
import datasets

rows = datasets.load_dataset("parquet", data_files={{ pattern }}, split="train")  # every row
test = rows.filter(lambda split: split == "test", input_columns="split")
```

Or split already, and checked to be of the model in use:

```python
from pathlib import Path
from diff_oracle.records import open_dataset

weights_hash = "{{ subject.weights_hash }}"
tokenizer_hash = "{{ subject.tokenizer_hash }}"
dataset = open_dataset(Path({{ name | tojson }}), weights_hash, tokenizer_hash)
record = dataset.split("test")[0]
```

## Columns

{{ columns }}

## How it was measured

{% for key, text in conventions.items() -%}
- `{{ key }}`: {{ text }}
{% endfor -%}
{% for task, options in settings.items() -%}
- settings of `{{ task }}`: {{ options }}
{% endfor %}
## Counts

{{ counts }}

`train`, `select` and `test` count rows. Texts that are equal up to white space are in one split.

## Labels

A label is trivial where its top answer is the one that its site gives oftenest on the training rows.

{{ labels }}
{% for warning in warnings %}
**Warning:** {{ warning }}.
{% endfor %}
## Examples

{{ examples }}""",
    keep_trailing_newline=True,
)
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_NUMBERS = ("scores", "weights", "probs", "deltas")
_TAIL_TOKENS = 24
_NUM_SHOWN = 5


def dataset_card(
    name: str, manifest: Mapping[str, Any], columns: pa.Schema, files: Sequence[Path], texts: Sequence[str]
) -> str:
    """The card's text.

    Args:
        name: The dataset's folder.
        manifest: Its manifest, with `labels`, the lines of `data_gen.distribution`.
        columns: Its schema.
        files: Its parts, for examples.
        texts: Each token's text.
    """
    conventions = {
        key: _plain(text)
        for key, text in manifest["conventions"].items()
        if key not in LABEL_COLUMNS or key in manifest["tasks"]
    }
    return _TEMPLATE.render(
        name=name,
        pattern=json.dumps(f"{name}/*.parquet"),
        tags=["interpretability", "diff_oracle", *manifest["tasks"]],
        size=_size(sum(manifest["counts"][split] for split in SPLITS)),
        manifest=manifest,
        subject=manifest["subject"],
        model=_described(manifest["model"]),
        corpus=_described(manifest["corpus"]),
        conventions=conventions,
        settings={task: code(json.dumps(options)) for task, options in manifest["tasks"].items()},
        columns=_table(("column", "type", "what"), [(f"`{f.name}`", f"`{f.type}`", _meaning(f.name)) for f in columns]),
        counts=_table(("what", "number"), [(key, str(value)) for key, value in manifest["counts"].items()]),
        labels=_table(HEADER, _label_lines(manifest["labels"])),
        warnings=[_plain(warning) for warning in useless(manifest["labels"], manifest["counts"])],
        examples="\n".join(line for row in _examples(files, columns) for line in _example(row, columns, texts)),
    )


def code(text: str) -> str:
    """A code span that shows the text as it is, whatever is in it."""
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * (max(runs, default=0) + 1)
    pad = " " if runs or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _size(num_rows: int) -> str:
    """The hub's category of a number of rows."""
    rank = max(len(str(num_rows)) - 3, 0)
    if rank == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[rank - 1]}<n<{_SIZES[rank]}" if rank < len(_SIZES) else f"n>{_SIZES[-1]}"


def _described(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {code(str(value))}" for key, value in settings.items() if value is not None)


def _meaning(column: str) -> str:
    return _COLUMNS.get(column) or "label of " + next(task for task, names in LABEL_COLUMNS.items() if column in names)


def _label_lines(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for line in lines:
        *plain, answers = cells(line)
        yield (*plain, ", ".join(f"{code(answer)} {count}" for answer, count in answers))


def _table(header: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _examples(files: Sequence[Path], columns: pa.Schema) -> list[dict[str, Any]]:
    """A row of each group of sites, each of another document, from the first part that has rows."""
    names = [name for name in columns.names if name not in ("diff", "before")]
    chosen: dict[str, dict[str, Any]] = {}
    for file in files:
        if chosen:
            break
        for row in pq.read_table(file, columns=names, partitioning=None).to_pylist():
            group, documents = DiffSite.parse(row["site"]).group, {other["doc_id"] for other in chosen.values()}
            if row["doc_id"] not in documents:
                chosen.setdefault(group, row)
    return list(chosen.values())


def _example(row: Mapping[str, Any], columns: pa.Schema, texts: Sequence[str]) -> Iterator[str]:
    *tail, last = row["token_ids"][-_TAIL_TOKENS:]
    context = ("…" if len(row["token_ids"]) > _TAIL_TOKENS else "") + "".join(texts[i] for i in tail)
    yield f"**{row['site']}** at position {row['position']} of {code(repr(row['doc_id']))}, split {row['split']}"
    yield ""
    yield f"- text up to the position, then the token at it: {code(repr(context))} **→** {code(repr(texts[last]))}"
    yield f"- ‖diff‖ {row['diff_norm']:.3g}, ‖before‖ {row['before_norm']:.3g}"
    for name in columns.names:
        what, _, kind = name.rpartition("_")
        if name in _COLUMNS or row[name] is None or (kind != "ids" and isinstance(row[name], list)):
            continue
        if kind != "ids":
            yield f"- {name}: {row[name]:.3g}"
            continue
        numbers = next(row[n] for n in (f"{what}_{of}" for of in _NUMBERS) if n in row)
        tokens = [f"{code(repr(texts[i]))} {x:.3g}" for i, x in zip(row[name], numbers, strict=True)]
        yield f"- {what}: {', '.join(tokens[:_NUM_SHOWN]) or 'none'}"
    yield ""


def _plain(text: str) -> str:
    """Text whose signs are not Markdown's."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
