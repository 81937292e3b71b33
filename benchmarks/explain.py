"""What makes explaining fast, each left out in turn: all heads at some positions of a text, free explanations included.

    python benchmarks/explain.py [positions]        default: 10, of 48 heads each

Left out are: drafts (oracle/decoding.py), so that every pass of the oracle writes one token an answer; on a CPU,
batches in threads of their own (oracle/side_by_side.py), so that all cores share every operation. The ways take turns
in one process, and say the same, but for a close choice in fifty that rounding may turn. After
each round a page is made of all heads at every token of a text of 64, in seconds: from the text to the page, models
loaded before.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import torch

from diff_oracle.explain import Explainer, asking
from diff_oracle.explain import explain as explain_text
from diff_oracle.explain.page import render_page
from diff_oracle.explain.running import load_explainer
from diff_oracle.oracle import decoding
from diff_oracle.provenance import provenance
from diff_oracle.subject.loading import pick_device

ROUNDS = 3
TEXT = (
    "The value is returned by the function when the list has no more items, or None if the file could not be read. "
    "If the module is not found, an exception is raised, and the name of the module is printed."
)


@contextmanager
def as_it_is() -> Iterator[None]:
    yield


@contextmanager
def a_token_a_pass() -> Iterator[None]:
    def none(said: torch.Tensor, *_: object) -> torch.Tensor:
        return said.new_empty((len(said), 0))

    with patch.object(decoding, "_drafts", none):
        yield


@contextmanager
def in_one_thread() -> Iterator[None]:
    with patch.object(asking, "side_by_side", lambda function, rows, _: function(rows)):
        yield


WAYS: dict[str, Callable[[], object]] = {
    "ours": as_it_is,
    "a token a pass": a_token_a_pass,
    "cores sharing every operation": in_one_thread,
}


def explain(explainer: Explainer, positions: int) -> tuple[float, list[str | None]]:
    """Seconds, and what was said freely."""
    text = explainer.read(TEXT)
    queries = explainer.queries([text], "heads", list(range(1, 1 + positions)))
    start = time.perf_counter()
    found = [item for batch in explainer.explain([text], queries) for item in batch]
    return time.perf_counter() - start, [item.explanation for item in found]


def seconds_of_a_page(explainer: Explainer, tokens: int) -> float:
    """From a text of so many tokens to the page of all heads at each."""
    oracle, text = explainer.oracle, " ".join([TEXT] * 4)
    while len(explainer.read(text).token_ids) > tokens:
        text = text[:-1]
    assert len(explainer.read(text).token_ids) == tokens
    start = time.perf_counter()
    found = explain_text(explainer.subject, oracle, text, sites="heads", positions="all")
    render_page(found)
    seconds = time.perf_counter() - start
    assert len(found.items) == (tokens - 1) * 48
    return seconds


def main() -> None:
    positions = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    explainer = load_explainer(oracle="tiny")
    explain(explainer, 1)
    took: dict[str, list[float]] = {name: [] for name in WAYS}
    said: dict[str, list[str | None]] = {}
    pages: list[float] = []
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            with way():  # type: ignore[attr-defined]
                seconds, said[name] = explain(explainer, positions)
            took[name].append(seconds)
        pages.append(seconds_of_a_page(explainer, 64))
    number = len(said["ours"])
    same = {name: sum(a == b for a, b in zip(said["ours"], of, strict=True)) / number for name, of in said.items()}
    assert min(same.values()) > 0.98, f"what is said differs: {same}"  # rounding may turn a close choice
    seconds = {name: median(of) for name, of in took.items()}
    result = {
        "diffs": number,
        "rounds": ROUNDS,
        "diffs a second": number / seconds["ours"],
        **{f"{name} / ours (seconds)": of / seconds["ours"] for name, of in seconds.items() if name != "ours"},
    }
    result |= {"a page of all heads of 64 tokens (seconds)": median(pages), "the slowest page (seconds)": max(pages)}
    print(json.dumps(result | {"provenance": provenance(pick_device("auto"))}, indent=1))


if __name__ == "__main__":
    main()
