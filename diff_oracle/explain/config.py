"""Settings that the commands which explain have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from diff_oracle.explain.answering import AUTO
from diff_oracle.explain.explanations import RANKS
from diff_oracle.tasks import TASKS

OUTPUTS = ("json", "parquet", "html")


@dataclass
class SourceConfig:
    """Who explains, and where."""

    oracle: str | None = None
    """A run directory of `diff_oracle.train`, an oracle's folder, the id of one on the Hugging Face hub, or `tiny`, the
    one that comes with the package."""
    nla: str | None = None
    """In its place, a run directory of `diff_oracle.train_ar` or `train_rl`, or a pair's folder: its oracle explains,
    and its reconstructor rebuilds each diff from the explanation."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    run_dir: str | None = None
    """Where everything goes. A run directory that holds explanations of the same texts is gone on with."""

    def __post_init__(self) -> None:
        if (self.oracle is None) == (self.nla is None):
            raise ValueError(
                "give either oracle=RUN, of diff_oracle.train, or nla=RUN, of diff_oracle.train_ar or train_rl"
            )

    @property
    def source(self) -> str:
        """What it names."""
        return self.oracle or self.nla or ""


@dataclass
class AskingConfig(SourceConfig):
    """What is asked, and what is told of the answers."""

    tasks_asked: list[str] = field(default_factory=list)
    """Tasks whose standard questions are asked; those that the oracle was trained with if none are named."""
    free_question: str | None = AUTO
    """What brings the free explanation; null asks for none, `auto` too unless the oracle was trained to give one."""
    rank: str = "size"
    """What counts as large: `size`, `direct_effect` or `skip_kl`."""
    show: int = 8
    """Explanations, or claims and examples, that are printed."""
    save: list[str] = field(default_factory=lambda: list(OUTPUTS))
    """What is written: json, parquet, html."""
    batch_size: int | None = None
    """Diffs that are explained together; 1,024, or fewer of a large model (`batch_size_for`), if it is not given.
    A kill costs one batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank not in RANKS:
            raise ValueError(f"unknown rank {self.rank!r}: choose from {', '.join(RANKS)}")
        if unknown := [name for name in self.save if name not in OUTPUTS]:
            raise ValueError(f"unknown output {unknown[0]!r} in save: choose from {', '.join(OUTPUTS)}")
        if unknown := [name for name in self.tasks_asked if name not in TASKS]:
            raise ValueError(f"unknown task {unknown[0]!r} in tasks_asked: choose from {', '.join(TASKS)}")
        if self.show < 0:
            raise ValueError(f"show must be at least 0, got {self.show}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
