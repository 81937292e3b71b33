"""Tasks: what can be asked about a diff. One file a task; a task's config is a dataclass beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from diff_oracle.tasks.attention import Attention, AttentionConfig
from diff_oracle.tasks.base import Question, Task
from diff_oracle.tasks.explanation import Explanation, ExplanationConfig
from diff_oracle.tasks.layer_skip import LayerSkip, LayerSkipConfig
from diff_oracle.tasks.logit_lens import LogitLens, LogitLensConfig
from diff_oracle.tasks.text import Text, Vocabulary

TASKS: dict[str, tuple[type[Any], type[Any]]] = {
    "logit_lens": (LogitLens, LogitLensConfig),
    "attention": (Attention, AttentionConfig),
    "layer_skip": (LayerSkip, LayerSkipConfig),
    "explanation": (Explanation, ExplanationConfig),
}
"""Name -> (task, its config)."""


def make_tasks(configs: Mapping[str, Mapping[str, Any]]) -> list[Task]:
    """The tasks of a config.

    Raises:
        ValueError: None is named, one is unknown, or a config has an unknown key.
    """
    if not configs:
        raise ValueError(f"no task: add +task=NAME (choose from {', '.join(TASKS)})")
    tasks = []
    for name, options in configs.items():
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
        task, config = TASKS[name]
        known = [f.name for f in fields(config)]
        for key in options:
            if key not in known:
                raise ValueError(f"unknown key 'tasks.{name}.{key}': choose from {', '.join(known)}")
        tasks.append(task(config(**options)))
    return tasks


__all__ = ["TASKS", "Question", "Task", "Text", "Vocabulary", "make_tasks"]
