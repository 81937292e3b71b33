"""Pages of results from templates: each package has its own `page.html.j2`, all share `page_base` and `page_parts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diff_oracle.evaluation.report import score_text

SHARED = Path(__file__).parent


def render_template(folder: Path, **content: Any) -> str:
    """The page of a folder's `page.html.j2`. What is put in is text, whatever it holds, unless it comes as markup.

    Args:
        folder: Where the template lies.
        content: By the names that the template uses.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = score_text
    return environment.get_template("page.html.j2").render(content)
