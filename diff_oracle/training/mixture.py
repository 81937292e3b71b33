"""What training asks: the shares of tasks, of kinds of question, and of prompts without a diff."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from diff_oracle.tasks import Task


@dataclass
class MixtureConfig:
    """What training asks."""

    tasks: dict[str, float] = field(default_factory=dict)
    """Weight of each task, 1 where it is not named; one of weight 0 is held out, as `holdout.tasks` holds it out."""
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Weights of a task's kinds of question, 0 where they are not named; a task that is not named has its own. While
    lists come first, every list of a task that has a weight is asked as often."""
    questions_per_diff: int = 3
    """Questions about each diff, of different kinds; they share the row, so that the diff is read once."""
    lists_first: float = 0.6
    """Share of the training, at its beginning, that asks for lists of tokens alone."""
    one_list_first: float = 0.0
    """Share of the training, at its beginning and within `lists_first`, that asks for one list of each task alone."""
    flipped: float = 0.5
    """Of the diffs that are asked about by tasks whose labels answer for −diff too, the share that is flipped."""
    text_only: float = 0.1
    """Behind the lists, share of diffs in whose place the context's text is shown."""
    none: float = 0.05
    """Behind the lists, share of diffs that are replaced by zeros."""

    def __post_init__(self) -> None:
        if self.questions_per_diff < 1:
            raise ValueError(f"mixture.questions_per_diff must be at least 1, got {self.questions_per_diff}")
        if not 0 <= self.lists_first <= 1:
            raise ValueError(f"mixture.lists_first must be 0…1, got {self.lists_first}")
        if not 0 <= self.one_list_first <= self.lists_first:
            raise ValueError(
                f"mixture.one_list_first must be 0…lists_first = {self.lists_first}, got {self.one_list_first}"
            )
        if not 0 <= self.flipped <= 1:
            raise ValueError(f"mixture.flipped must be 0…1, got {self.flipped}")
        shares = (self.text_only, self.none)
        if min(shares) < 0 or sum(shares) >= 1:
            raise ValueError(f"mixture.text_only and none must be at least 0 and below 1 together, got {shares}")
        weights = [*self.tasks.values(), *(weight for kinds in self.kinds.values() for weight in kinds.values())]
        if any(weight < 0 for weight in weights):
            raise ValueError(f"weights of mixture.tasks and mixture.kinds must be at least 0, got {min(weights)}")

    def of(self, names: Collection[str]) -> MixtureConfig:
        """What is said of some of the tasks."""
        tasks = {name: weight for name, weight in self.tasks.items() if name in names}
        return replace(self, tasks=tasks, kinds={name: kinds for name, kinds in self.kinds.items() if name in names})


def shares(config: MixtureConfig, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """The share of each kind of each task; those of one task together are its weight.

    Raises:
        ValueError: The config names a task or kind that is not there, or nothing has a weight.
    """
    names = [task.name for task in tasks]
    for name in (*config.tasks, *config.kinds):
        if name not in names:
            raise ValueError(f"the mixture names task {name!r}, which is not asked: add +task={name} or leave it out")
    result = {}
    for task in tasks:
        kinds = config.kinds.get(task.name, task.kinds)
        if unknown := [kind for kind in kinds if kind not in task.kinds]:
            raise ValueError(
                f"unknown kind mixture.kinds.{task.name}.{unknown[0]}: choose from {', '.join(task.kinds)}"
            )
        total, weight = sum(kinds.values()), config.tasks.get(task.name, 1.0)
        result[task.name] = {kind: weight * kinds.get(kind, 0.0) / total if total else 0.0 for kind in task.kinds}
    if not any(share for kinds in result.values() for share in kinds.values()):
        raise ValueError("the mixture trains nothing: give a task and one of its kinds a weight above 0")
    return result
