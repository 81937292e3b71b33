"""What states of a pair are compared by: how well its explanations of rows of split `select` rebuild their diffs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diff_oracle.evaluation.bootstrap import DocumentBootstrap
from diff_oracle.nla.health import explanation_health, fve
from diff_oracle.nla.metrics import Means, spread
from diff_oracle.nla.pair import DiffNLA, as_read, explain
from diff_oracle.nla.reward import Judged, judge
from diff_oracle.nla.rows import Rows, other_documents
from diff_oracle.nla.rungs import Rebuilt
from diff_oracle.randomness import keyed_rng
from diff_oracle.tasks.claims import write
from diff_oracle.tasks.truth import Measured

METRIC, SHUFFLED = "select/fve", "select/shuffled"
_EXAMPLES = 8  # that are kept of each measurement
_RESAMPLES = 1000  # of the documents, for the gate


class Selection:
    """Measures a pair as it is.

    Args:
        pair: The pair.
        rows: Of split `select`.
        truth: What is true of each.
        means: μ, from the training rows.
        truth_gated: Whether only true claims are read, as in training.
        seed: Keys the resamples, and whose explanation is read in place of whose.
    """

    def __init__(
        self, pair: DiffNLA, rows: Rows, truth: Sequence[Measured], means: Means, truth_gated: bool, seed: int
    ) -> None:
        self._pair, self._rows, self._truth, self._gated, self._seed = pair, rows, truth, truth_gated, seed
        self._mean, self._others = means.at(rows.sites), other_documents(rows.records, seed)
        self._judged: list[Judged] = []
        self._matched: Rebuilt = np.zeros_like(rows.target)
        self._shuffled: Rebuilt = np.zeros_like(rows.target)

    def measure(self) -> dict[str, float]:
        """FVE of the greedy explanations and of other documents' explanations of the same site; and their health."""
        rows, vocabulary = self._rows, self._pair.av.vocabulary
        self._judged = [
            judge(a.text, a.num_tokens, a.cut_off, record.token_ids, truth, vocabulary, self._gated)
            for a, record, truth in zip(
                explain(self._pair.av, rows.records, self._pair.config), rows.records, self._truth, strict=True
            )
        ]
        read = [as_read(j.read) for j in self._judged]
        self._matched = self._pair.ar.reconstruct(rows.records, read)
        self._shuffled = self._pair.ar.reconstruct(rows.records, [read[i] for i in self._others])
        health = explanation_health(self._judged)
        return {
            METRIC: fve(self._matched, rows.target, self._mean),
            SHUFFLED: fve(self._shuffled, rows.target, self._mean),
            **{f"select/{name}": health[name] for name in ("length", "failed", "quotes", "true_claims")},
        }

    def check_gate(self) -> None:
        """Makes sure that what was measured last leaves something to work with.

        Raises:
            ValueError: Explanations are read no better than those of other diffs.
        """
        docs, target = [record.doc_id for record in self._rows.records], self._rows.target
        bootstrap = DocumentBootstrap(docs, _RESAMPLES, keyed_rng(self._seed, "bootstrap"))
        less = np.mean((self._shuffled - target) ** 2 - (self._matched - target) ** 2, axis=1)
        gain = bootstrap.ratio(less, spread(target, self._mean))
        if not gain.ci_low > 0:
            raise ValueError(
                "the reconstructor does no better with an explanation than with another diff's: FVE matched - shuffled "
                f"on select is {gain.value:.3f} [{gain.ci_low:.3f}, {gain.ci_high:.3f}], expected above 0. "
                "Reinforcement learning would have nothing to work with: train the pair longer, or go on all the same "
                "with rl.gate=false"
            )

    def examples(self) -> list[dict[str, Any]]:
        """Some of what was measured last: what was said, what of it was read, and what the labels say."""
        show = self._pair.av.vocabulary.show
        rows = zip(self._rows.records, self._judged, self._rows.gold, strict=True)
        return [
            {
                "site": record.site,
                "context": show(record.token_ids[-24:]),
                "said": show(write(judged.claims)),
                "read": show(write(judged.read)),
                "measured": show(write(gold)),
            }
            for record, judged, gold in list(rows)[:_EXAMPLES]
        ]
