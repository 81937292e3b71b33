"""Oracles that say in words what one step inside a language model does.

from diff_oracle import DiffSite, Oracle, Subject, diffs_of_text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diff_oracle.oracle.model import Oracle
    from diff_oracle.subject.capture import Diff, diffs_of_text
    from diff_oracle.subject.model import Subject
    from diff_oracle.subject.sites import DiffSite

__version__ = "0.1.0"
__all__ = ["Diff", "DiffSite", "Oracle", "Subject", "diffs_of_text"]

# Read when first asked for: torch and transformers take seconds to import.
_MODULES = {
    "Diff": "subject.capture",
    "DiffSite": "subject.sites",
    "Oracle": "oracle.model",
    "Subject": "subject.model",
    "diffs_of_text": "subject.capture",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
