"""Explaining: from texts, positions and sites to what an oracle says of them and what was measured, in batches.

from diff_oracle import Oracle, Subject
from diff_oracle.explain import explain

oracle = Oracle.from_pretrained("runs/demo/oracle")
subject = Subject.load(oracle.base)
explain(subject, oracle, "The value is returned by the function", sites="heads").to_frame()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from diff_oracle.explain.answering import AUTO, EXPLANATION, FREE_QUESTION, free_explanations, standard_answers
from diff_oracle.explain.explanations import Answer, ExplainedText, Explanation, Explanations, six_digits
from diff_oracle.explain.measured import (
    ALL,
    Point,
    check_length,
    conventions,
    find_positions,
    measure_sites,
    measured_tasks,
    read_text,
)
from diff_oracle.explain.rebuilding import CONVENTIONS, reconstructions
from diff_oracle.nla.pair import DiffNLA, longest_explanation
from diff_oracle.oracle.cache import bytes_a_position
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.reading import Reading
from diff_oracle.oracle.side_by_side import side_by_side
from diff_oracle.records import Record
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites
from diff_oracle.tasks import TASKS, Task, make_tasks
from diff_oracle.tasks.text import Text
from diff_oracle.tasks.truth import TruthConfig

_MOST_TOGETHER = 1024
_MOST_BYTES = 4 * 2**30
_POSITIONS = 256  # of a prompt, a free explanation and what was drafted for it in vain


@dataclass(frozen=True)
class Query:
    """One site at one position of one of the texts."""

    text: int
    position: int
    site: DiffSite


class Explainer:
    """A subject and an oracle of it, to be asked about many texts.

    Attributes:
        subject: The model.
        oracle: Its oracle.
        pair: The pair that the oracle is of, which rebuilds diffs from free explanations; None where there is none.
        tasks: What is asked: those of them that have standard questions.
        free_question: What brings the free explanation; None asks for none.
        batch_size: Sites that are explained together; as many as `batch_size_for` has it where None is given.
    """

    def __init__(
        self,
        subject: Subject,
        oracle: Oracle | DiffNLA,
        tasks: Sequence[Task] | None = None,
        free_question: str | None = AUTO,
        batch_size: int | None = None,
    ) -> None:
        """Takes the oracle's own tasks where none are named, every task where it does not know its own.

        With a pair in the oracle's place, diffs are rebuilt too.

        Raises:
            ValueError: The oracle was trained on another model, there is no batch, a pair is not asked for
                explanations, or what it rebuilds are no diffs.
        """
        self.pair = oracle if isinstance(oracle, DiffNLA) else None
        oracle = oracle.av if isinstance(oracle, DiffNLA) else oracle
        for key in ("weights_hash", "tokenizer_hash"):
            theirs, ours = getattr(oracle.identity, key), getattr(subject.identity, key)
            if theirs != ours:
                raise ValueError(
                    f"the oracle reads {oracle.identity.name} with {key} {theirs[:12]}, but the subject is "
                    f"{subject.identity.name} with {ours[:12]}: load the subject with Subject.load(oracle.base)"
                )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.subject, self.oracle = subject, oracle
        self.tasks = list(make_tasks(oracle.config.tasks or {name: {} for name in TASKS}) if tasks is None else tasks)
        if self.pair is not None:
            self.pair.check_target()
            if free_question is None:
                raise ValueError("without a free question there is nothing that a pair could rebuild a diff from")
        if free_question == AUTO:
            explains = self.pair is not None or any(task.name == EXPLANATION for task in self.tasks)
            free_question = FREE_QUESTION if explains else None
        self.free_question, self.batch_size = free_question, batch_size or batch_size_for(oracle)
        self._measured = measured_tasks(self.tasks)
        self._truth = TruthConfig() if self.pair is None else self.pair.truth
        self._allowed = oracle.vocabulary.allowed.to(subject.device)
        self._said: dict[Text, list[int]] = {}  # an answer to each question, as those to come are expected to be

    @property
    def conventions(self) -> dict[str, str]:
        """How each measure is defined."""
        return conventions(self._measured, self._truth) | (CONVENTIONS if self.pair else {})

    def read(self, text: str) -> ExplainedText:
        """A text as the subject reads it."""
        return read_text(text, self.oracle.vocabulary)

    def queries(self, texts: Sequence[ExplainedText], sites: Any = "heads", positions: Any = -1) -> list[Query]:
        """Every site at every position of every text, in the order in which they are explained.

        Args:
            texts: What `read` gave.
            sites: Single sites (`L3H2`) or sets (`layers`, `components`, `heads`, `spans`), one or several.
            positions: Token indices, negative ones from the end, one or several; or `all`.

        Raises:
            ValueError: A site is unknown, a position is out of range, or a text is empty or too long.
        """
        names = [sites] if isinstance(sites, str) else list(sites)
        wanted = positions if isinstance(positions, str | Sequence) else [positions]
        if wanted != ALL and (isinstance(wanted, str) or not all(type(position) is int for position in wanted)):
            raise ValueError(f"positions are token indices or {ALL!r}, got {positions!r}")
        if not names or not wanted or not texts:
            raise ValueError("nothing to explain: name at least one text, one site and one position")
        expanded = expand_sites(names, self.subject.n_layers, self.subject.n_heads)
        for number, text in enumerate(texts):
            check_length(text, number, self.subject)
        return [
            Query(number, position, site)
            for number, text in enumerate(texts)
            for position in find_positions(wanted, text, number)
            for site in expanded
        ]

    def explain(self, texts: Sequence[ExplainedText], queries: Sequence[Query]) -> Iterator[list[Explanation]]:
        """Explains in the order of the queries, `batch_size` at a time."""
        for start in range(0, len(queries), self.batch_size):
            yield self._explain(texts, queries[start : start + self.batch_size])

    def _explain(self, texts: Sequence[ExplainedText], queries: Sequence[Query]) -> list[Explanation]:
        points: list[Point] = []
        for number, group in groupby(queries, key=lambda query: query.text):
            at = [(query.position, query.site) for query in group]
            # The model looks only back: what follows the last position would be read for nothing.
            context = texts[number].token_ids[: 1 + max(position for position, _ in at)]
            points += measure_sites(self.subject, context, at, self._measured, self._allowed)
        records, readings = [point.record for point in points], list[Reading]()
        told = side_by_side(lambda part: self._ask(part, readings), records, self.oracle.device)
        self._said |= next(reading.said for reading in readings if reading.diffs[0] is records[0])
        return [
            self._explanation(query, point, answers, said)
            for query, point, (answers, said) in zip(queries, points, told, strict=True)
        ]

    def _ask(self, records: Sequence[Record], readings: list[Reading]) -> list[tuple[list[Answer], dict[str, Any]]]:
        """Of each record the answers to the standard questions, and what is said freely; adds to `readings`."""
        reading = Reading(self.oracle, records, self._said)
        readings.append(reading)
        answers = standard_answers(reading, self.tasks, records, self.oracle.vocabulary)
        free: list[dict[str, Any]] = [{}] * len(records)
        if self.free_question is not None:
            free = self._explain_freely(reading, records, self.free_question)
        return list(zip(answers, free, strict=True))

    def _explain_freely(self, reading: Reading, records: Sequence[Record], question: str) -> list[dict[str, Any]]:
        """The fields of explanations that hold what the oracle says of its own accord, and what it lets rebuild."""
        room = None if self.pair is None else longest_explanation(self.pair.config)
        vocabulary = self.oracle.vocabulary
        told = free_explanations(reading, records, question, self.subject, vocabulary, self._truth, room)
        fields: list[dict[str, Any]] = [{"explanation": text, "explanation_claims": claims} for text, claims in told]
        if self.pair is not None:
            texts = [of_row["explanation"] for of_row in fields]
            rebuilt = reconstructions(self.pair, records, texts, self.subject, self._allowed)
            fields = [of_row | {"rebuilt": one} for of_row, one in zip(fields, rebuilt, strict=True)]
        return fields

    def _explanation(self, query: Query, point: Point, answers: list[Answer], free: dict[str, Any]) -> Explanation:
        record, labels = point.record, point.record.labels
        tokens = self.oracle.vocabulary.texts

        def named(end: str, value: str) -> list[tuple[str, float]]:
            return [
                (tokens[int(token)], six_digits(x))
                for token, x in zip(labels[f"{end}_ids"], labels[f"{end}_{value}"], strict=True)
            ]

        sink = float(labels["sink_weight"])
        attended = zip(labels["attended_positions"], labels["attended_weights"], strict=True) if sink == sink else ()
        return Explanation(
            text=query.text,
            position=record.position,
            site=record.site,
            kind=query.site.kind,
            relative_size=six_digits(record.relative_size),
            direct_effect=six_digits(point.direct_effect),
            next_token=tokens[point.next_id],
            skip_kl=six_digits(labels["kl"]),
            promoted=named("promoted", "scores"),
            suppressed=named("suppressed", "scores"),
            gained=named("gained", "deltas"),
            lost=named("lost", "deltas"),
            attended=[(int(position), six_digits(weight)) for position, weight in attended],
            sink_share=six_digits(sink) if sink == sink else None,
            answers=answers,
            **free,
        )


def batch_size_for(oracle: Oracle) -> int:
    """Diffs to explain together: 1,024, or as many as leave keys and values of an answer at about four gigabytes."""
    return min(_MOST_TOGETHER, max(1, _MOST_BYTES // (_POSITIONS * bytes_a_position(oracle.lm.get_base_model()))))


def explain(
    subject: Subject,
    oracle: Oracle | DiffNLA,
    text: str | Sequence[str],
    sites: str | Sequence[str] = "heads",
    positions: int | str | Sequence[int] = -1,
    tasks: Sequence[Task] | None = None,
    free_question: str | None = AUTO,
    batch_size: int | None = None,
) -> Explanations:
    """Explains sites at positions of a text, or of several.

    Args:
        subject: The model.
        oracle: An oracle of that model; or a pair: its oracle explains, and its reconstructor rebuilds each diff from
            the explanation (`Explanation.rebuilt`).
        text: One text or several.
        sites: Single sites (`L3H2`) or sets (`layers`, `components`, `heads`, `spans`), one or several.
        positions: Token indices, negative ones from the end, one or several; or `all`. Position 0 has no diff.
        tasks: What is asked; the tasks that the oracle was trained with where it is not given.
        free_question: What brings the free explanation; `auto` asks for one if task `explanation` is among the tasks,
            or a pair explains, None asks for none.
        batch_size: Sites that are explained together; where it is not given `batch_size_for` has it.

    Raises:
        ValueError: As `Explainer` and `Explainer.queries`.
    """
    explainer = Explainer(subject, oracle, tasks, free_question, batch_size)
    texts = [explainer.read(part) for part in ([text] if isinstance(text, str) else text)]
    queries = explainer.queries(texts, sites, positions)
    items = [item for part in explainer.explain(texts, queries) for item in part]
    return Explanations(subject.identity.name, explainer.oracle.identity.name, explainer.conventions, texts, items)
