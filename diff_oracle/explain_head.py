"""Explains one head, or one layer, over many texts: what its explanations have in common and how far they are right.

    python -m diff_oracle.explain_head oracle=runs/demo head=L5H3
    python -m diff_oracle.explain_head oracle=runs/demo head=L2 corpus=text_files corpus.path=FOLDER rank=skip_kl

Reads documents of a split, by default one that training did not see, at drawn positions. Prints a summary; the run
directory gets summary.json and what `diff_oracle.explain` writes. Killed, the same command with the run directory that
it had named goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_gen.corpus import CorpusConfig, iter_documents
from data_gen.sampling import SamplingConfig, SitesConfig, document_windows
from diff_oracle.cli import entry_point
from diff_oracle.explain.asking import Explainer, Query
from diff_oracle.explain.config import AskingConfig
from diff_oracle.explain.explanations import ExplainedText
from diff_oracle.explain.measured import shown_tokens
from diff_oracle.explain.running import begin, explain_to_disk, write
from diff_oracle.explain.summary import SiteSummary, summarise
from diff_oracle.explain.table import carried, one_line, visible
from diff_oracle.records import SPLITS, split_of
from diff_oracle.subject.sites import DiffSite


@dataclass
class ExplainHeadConfig(AskingConfig):
    """What to explain, over which texts."""

    head: str = "???"
    """A head (L5H3), or any other single site: a layer (L5), a half (L5.mlp), a span (L3:5)."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """Where text comes from."""
    split: str = "test"
    """Which documents of the corpus: `test` and `select` are never trained on, `train` is."""
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(max_documents=50, windows_per_document=1, positions_per_window=4)
    )
    """How much of the split is read, and where."""
    seed: int = 0
    """Keys the positions that are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}: choose from {', '.join(SPLITS)}")


def run(config: ExplainHeadConfig) -> None:
    """Reads, explains what is missing, writes, prints."""
    site = DiffSite.parse(config.head)
    folder, explainer = begin(config)
    site.check(explainer.subject.n_layers, explainer.subject.n_heads)
    texts, queries = draw_texts(config, explainer, site)
    found = explain_to_disk(explainer, texts, queries, config)
    summary = summarise(found, str(site), config.rank, config.show)
    file = folder / "summary.json"
    file.write_text(json.dumps(asdict(summary), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    written = [file, *write(found, folder, config.save)]
    print_summary(summary)
    for path in written:
        print(path)


def draw_texts(
    config: ExplainHeadConfig, explainer: Explainer, site: DiffSite
) -> tuple[list[ExplainedText], list[Query]]:
    """Windows of the split's documents, and the places in them, drawn as a dataset draws them.

    Raises:
        ValueError: The corpus has no document of the split that is long enough.
    """
    vocabulary, sampling = explainer.oracle.vocabulary, config.sampling
    documents = (doc for doc in iter_documents(config.corpus) if split_of(doc.text) == config.split)
    num_before = len(vocabulary.tokenizer("")["input_ids"])  # tokens that are not of the text
    texts: list[ExplainedText] = []
    queries: list[Query] = []
    for document in islice(documents, sampling.max_documents):
        sites = SitesConfig([str(site)], None)
        for window in document_windows(vocabulary.tokenizer, document, [[site]], sites, sampling, config.seed):
            queries += [Query(len(texts), position, site) for position, _ in window.queries]
            tokens = shown_tokens(window.token_ids, vocabulary)
            texts.append(ExplainedText("".join(tokens[num_before:]), tokens, window.token_ids))
    if not texts:
        raise ValueError(
            f"no document of split {config.split} has more than {sampling.min_position} tokens: choose another corpus, "
            "split, or a smaller sampling.min_position"
        )
    return texts, queries


def print_summary(summary: SiteSummary) -> None:
    """Prints what people want to know of a site."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    means = ", ".join(f"{name} {value:.3g}" for name, value in summary.means.items())
    console.print(
        f"{summary.site} at {summary.num_explained} places of {summary.num_texts} texts; mean {means}", highlight=False
    )
    table = Table(title="what its explanations have in common (times said, times right)")
    for name in ("question", "score", "right", "elsewhere", "claims", "said most often"):
        table.add_column(name, overflow="fold", justify="right" if name in ("score", "right", "elsewhere") else "left")
    for part in summary.questions:
        common = "  ".join(f"{visible(claim.text)} ({claim.said}, {claim.right})" for claim in part.common)
        shares = [f"{share:.1%}" if share is not None else "" for share in (part.right, part.right_elsewhere)]
        score = "" if part.score is None else f"{part.score:.3f}"
        table.add_row(part.question, score, *shares, str(part.num_claims), Text(common))
    console.print(table)
    console.print("elsewhere: how many of the same claims are right of the other texts, so what the site's habit gives")
    if summary.rebuilt:
        console.print(carried(summary.rebuilt), highlight=False)
    examples = Table(title=f"where it is strongest, by {summary.rank}")
    for name in ("at", summary.rank, "the model says", "question", "the oracle says", "measured"):
        examples.add_column(name, overflow="fold")
    for example in summary.examples:
        place = Text(f"…{one_line(example.before)}").append(one_line(example.token), style="reverse")
        head: Sequence[str | Text] = (place, f"{example.size:.3g}", Text(visible(example.next_token)))
        for number, (kind, said) in enumerate(example.answers.items()):
            cells = [Text("  ".join(map(visible, text.split("\n")))) for text in (said, example.measured.get(kind, ""))]
            examples.add_row(*(head if number == 0 else ("", "", "")), kind, *cells)
        examples.add_section()
    console.print(examples)


main = entry_point("explain_head", ExplainHeadConfig, run)

if __name__ == "__main__":
    main()
