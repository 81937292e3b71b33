"""Explanations -> one self-contained HTML page: no network, no timestamp, the same bytes for the same explanations."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diff_oracle.explain.explanations import Explanations

MAX_CHARS = 20_000
"""Longest text that the app takes."""
MAX_QUESTION_CHARS = 500
"""Longest question that the app takes."""


def render_page(explanations: Explanations, live: bool = False) -> str:
    """The page that shows explanations.

    The data is JSON in an element that is not run, every `<` in it escaped; the page's own scripts put it into the page
    as text alone, and a Content-Security-Policy names them by their hash, so that nothing else can run.

    Args:
        explanations: What is shown.
        live: Whether a server stands behind the page that reads texts, explains tokens and answers questions
            (`diff_oracle.serve`).

    Raises:
        ValueError: A number is not finite.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "default": vars}  # no browser reads NaN

    def part(name: str) -> Markup:
        return Markup(environment.get_template(f"page{name}.j2").render())

    style = part(".css")
    scripts = ("base", "text", "map", "site", "list", *(["live"] if live else []), "start")
    script = Markup("\n").join(part(f"_{name}.js") for name in scripts)
    return environment.get_template("page.html.j2").render(
        data={"explanations": explanations.content(), "live": live},
        title=f"{explanations.subject} explained · diff_oracle",
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        live=live,
        max_chars=MAX_CHARS,
        max_question_chars=MAX_QUESTION_CHARS,
    )


def _hash(source: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
