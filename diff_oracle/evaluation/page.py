"""One self-contained HTML page about finished runs: no network, no timestamp, the same bytes for the same runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from tqdm import tqdm

from diff_oracle.evaluation.comparison import Comparison, compare
from diff_oracle.evaluation.controls import MATCHED
from diff_oracle.evaluation.plots import forest, learning_curve, page_svg, side_by_side
from diff_oracle.evaluation.results import MIN_DOCS
from diff_oracle.evaluation.runs import FailedJob, Run
from diff_oracle.evaluation.templates import render_template
from diff_oracle.evaluation.verdict import READ, YARDSTICKS, Part, split_parts

MEANINGS = {
    MATCHED: "the diff itself: what is judged",
    "shuffled": "the diff of the same site in another document",
    "wrong_site": "the diff of another site at the same position",
    "same_document": "the diff of the same site at another position of the document",
    "sign_flipped": "the diff with its sign turned around",
    "random": "noise",
    "none": "zeros",
    "text_only": "the text in place of every vector",
    "site_prior": "no oracle at all: the site's usual answer in training",
    "recency": "no oracle at all: the answer that the places of the tokens in the text suggest",
    "linear_probe": "no oracle: a linear readout of the same diff. Not a control but a yardstick",
}
"""What is put in place of the diff, in plain words."""


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it.

    Attributes:
        run: What was read.
        anchor: Its id on the page.
        facts: What it is and where it comes from, by name.
        parts: All scores.
        verdicts: Questions over all sites, worded as in training.
        held_out: Questions that training had nothing like.
        by_site: Questions at one group of sites.
        forests: Task -> figure of its scores.
        curve: Figure of the training, None where none was kept.
    """

    run: Run
    anchor: str
    facts: dict[str, str]
    parts: list[Part]
    verdicts: list[Part]
    held_out: list[Part]
    by_site: list[Part]
    forests: dict[str, Markup]
    curve: Markup | None

    @property
    def num_read(self) -> int:
        """Questions that are read from the diff."""
        return sum(part.verdict == READ for part in self.verdicts)

    @property
    def controls(self) -> list[str]:
        """Everything that was put in place of the diff, `matched` first."""
        names = dict.fromkeys(name for part in self.parts for name in part.scores)
        return sorted(names, key=lambda name: (name != MATCHED, name in YARDSTICKS))

    @property
    def config(self) -> str:
        """The full configuration, as JSON."""
        return json.dumps(self.run.about.get("config", {}), indent=2, ensure_ascii=False)


def render_page(runs: Sequence[Run], failed: Sequence[FailedJob] = ()) -> str:
    """The page about one run, or about several with a comparison first.

    Args:
        runs: At least one.
        failed: Jobs of the same sweep that have nothing to show; they are named.
    """
    views = [_view(run, f"run-{i}") for i, run in enumerate(tqdm(runs, desc="drawing", disable=len(runs) < 3), start=1)]
    comparison = compare(runs) if len(runs) > 1 else None
    return render_template(
        Path(__file__).parent,
        views=views,
        failed=failed,
        comparison=comparison,
        dots=_dots(runs, comparison) if comparison else {},
        meanings={name: MEANINGS.get(name, "") for name in dict.fromkeys(c for view in views for c in view.controls)},
        MATCHED=MATCHED,
        READ=READ,
        YARDSTICKS=YARDSTICKS,
        MIN_DOCS=MIN_DOCS,
    )


def _view(run: Run, anchor: str) -> RunView:
    parts = split_parts(run.rows)
    asked = [part for part in parts if MATCHED in part.scores]
    trained = [part for part in asked if not part.held_out]
    verdicts = [part for part in trained if part.overall]
    forests = {
        task: Markup(page_svg(f"{anchor}-{i}-", forest, [part for part in verdicts if part.task == task]))
        for i, task in enumerate(dict.fromkeys(part.task for part in verdicts))
    }
    return RunView(
        run=run,
        anchor=anchor,
        facts=facts(run),
        parts=parts,
        verdicts=verdicts,
        held_out=[part for part in asked if part.held_out],
        by_site=[part for part in trained if not part.overall],
        forests=forests,
        curve=Markup(page_svg(f"{anchor}-curve-", learning_curve, run.history, True)) if run.history else None,
    )


def facts(run: Run) -> dict[str, str]:
    """What a run is and where it comes from, by name; what is not known is left out."""
    about, settings = run.about, run.settings
    machine, seconds = about.get("machine", {}), about.get("seconds", {})
    known = {
        "command": about.get("command"),
        "commit": about.get("commit"),
        "date": about.get("date"),
        "machine": ", ".join(f"{name} {value}" for name, value in machine.items()),
        "time": ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()),
        "model": ", ".join(
            str(settings[key]) for key in ("model.name", "model.path", "model.hub_id") if settings.get(key)
        ),
        "oracle": about.get("oracle"),
        "dataset": Path(about.get("dataset", "")).name,
        "split": ", ".join(dict.fromkeys(str(row["split"]) for row in run.rows if "split" in row)),
    }
    return {name: str(value) for name, value in known.items() if value}


def _dots(runs: Sequence[Run], comparison: Comparison) -> dict[str, Markup]:
    names = [run.name for run in runs]
    return {
        question: Markup(page_svg(f"dots-{i}-", side_by_side, question, dict(zip(names, parts, strict=True))))
        for i, (question, parts) in enumerate(comparison.questions.items())
    }
