"""A small app in the browser: type a text, choose a token, watch explanations come in, ask the oracle yourself.

    python -m diff_oracle.serve oracle=runs/demo
    python -m diff_oracle.serve oracle=runs/demo port=9000 sites=[layers,L3H2]
    python -m diff_oracle.serve nla=runs/nla              # a pair, which also rebuilds what it explains

It answers this machine alone. From another one, forward the port: `ssh -L 8765:localhost:8765 MACHINE`. What is typed
is text: nothing of it is run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from diff_oracle.cli import entry_point
from diff_oracle.explain.__main__ import SiteNames, hydra_words
from diff_oracle.explain.asking import Explainer
from diff_oracle.explain.config import SourceConfig
from diff_oracle.explain.explanations import ExplainedText, Explanations
from diff_oracle.explain.page import MAX_CHARS, MAX_QUESTION_CHARS, render_page
from diff_oracle.explain.running import load_explainer
from diff_oracle.explain.server import serve
from diff_oracle.subject.capture import Diff, capture
from diff_oracle.subject.forward import Query
from diff_oracle.subject.sites import DiffSite, expand_sites

_SITES_A_LINE = 16


@dataclass
class ServeConfig(SourceConfig):
    """What is served, and where; the log goes into the run directory."""

    sites: SiteNames = field(default_factory=lambda: SiteNames(["layers", "components", "heads"]))
    """What is explained at a token; `sites=L3H2` and `sites=[L3H2,layers]` are short for `sites.names=[…]`."""
    port: int = 8765
    """On this machine; 0 takes a free one."""


class App:
    """What the page asks for. One question at a time reaches the models; the others wait."""

    def __init__(self, explainer: Explainer, sites: list[str], oracle_name: str) -> None:
        """Serves an explainer.

        Raises:
            ValueError: A site is unknown.
        """
        self.explainer = explainer
        self.sites = expand_sites(sites, explainer.subject.n_layers, explainer.subject.n_heads)
        nothing = Explanations(explainer.subject.identity.name, oracle_name, explainer.conventions, [], [])
        self.page = render_page(nothing, live=True)
        self._lock = threading.Lock()

    def read(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """A text's tokens.

        Raises:
            ValueError: The text is missing, empty, or longer than the app or the model takes.
        """
        text = self._read(content)
        self.explainer.queries([text], [str(self.sites[0])])
        return asdict(text)

    def explain(self, content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Explanations of a token, some sites at a time.

        Raises:
            ValueError: As `read`, or the text has no such position.
        """
        text = self._read(content)
        queries = self.explainer.queries([text], [str(site) for site in self.sites], _whole(content, "position"))

        def parts() -> Iterator[dict[str, Any]]:
            for start in range(0, len(queries), _SITES_A_LINE):
                with self._lock:
                    found = self.explainer.explain([text], queries[start : start + _SITES_A_LINE])
                    items = [asdict(item) for part in found for item in part]
                yield {"items": items, "total": len(queries)}

        return parts()

    def ask(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The oracle's answer to a question of one's own about a site at a token.

        Raises:
            ValueError: As `explain`; or the site is unknown, or the question missing, too long, or full of slots.
        """
        text = self._read(content)
        question = _string(content, "question", MAX_QUESTION_CHARS)
        site, position = str(DiffSite.parse(_string(content, "site", 20))), _whole(content, "position")
        (query,) = self.explainer.queries([text], [site], position)
        ids = tuple(text.token_ids[: query.position + 1])
        with self._lock:
            subject = self.explainer.subject
            token_ids = torch.tensor([ids], device=subject.device)
            captured = capture(subject, token_ids, [Query(0, query.position, query.site)])
            vectors = captured.diff[0].cpu().numpy(), captured.before[0].cpu().numpy()
            answer = self.explainer.oracle.ask(Diff(site, query.position, ids, *vectors), question)
        return {"answer": answer}

    def close(self) -> None:
        """Waits for what is being computed, and lets nothing more begin: a program should not end in its midst."""
        self._lock.acquire()

    def _read(self, content: Mapping[str, Any]) -> ExplainedText:
        text = _string(content, "text", MAX_CHARS)
        with self._lock:
            return self.explainer.read(text)


def _string(content: Mapping[str, Any], name: str, longest: int) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value or len(value) > longest:
        got = f"{len(value)} characters" if isinstance(value, str) else repr(value)
        raise ValueError(f"{name} must be text of 1 to {longest} characters, got {got}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a character: send it as whole ones") from error
    return value


def _whole(content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


def load_app(oracle: str | None, sites: list[str], device: str = "auto", nla: str | None = None) -> App:
    """The app of an oracle or of a pair, named as `load_explainer` has it.

    Raises:
        ValueError: There is no such oracle or pair, or a site is unknown.
    """
    return App(load_explainer(oracle, nla, device=device), sites, oracle or nla or "")


def run(config: ServeConfig) -> None:
    """Loads, then serves until Ctrl-C."""
    app = load_app(config.oracle, config.sites.names, config.device, config.nla)
    server = serve(app, config.port)
    print(f"http://localhost:{server.server_port}/  (Ctrl-C ends it)", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
    app.close()


_command = entry_point("serve", ServeConfig, run)


def main() -> None:
    """The command line."""
    sys.argv[1:] = hydra_words(sys.argv[1:])
    _command()


if __name__ == "__main__":
    main()
