"""A small app in the browser: type a text, choose a token, watch explanations come in, ask the oracle yourself.

    python -m diff_oracle.serve oracle=runs/demo
    python -m diff_oracle.serve oracle=runs/demo port=9000 sites=[layers,L3H2]

It answers this machine alone. From another one, forward the port: `ssh -L 8765:localhost:8765 MACHINE`.

What a browser sends is text, never run, and only the app's own page may send it: a request that names another host
(a foreign site whose name was pointed at this machine), comes from another page, or is no JSON is refused.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from errno import EADDRINUSE
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import torch

from diff_oracle.cli import entry_point
from diff_oracle.explain.__main__ import SiteNames, hydra_words, load_explainer
from diff_oracle.explain.asking import Explainer
from diff_oracle.explain.explanations import ExplainedText, Explanations
from diff_oracle.explain.page import MAX_CHARS, MAX_QUESTION_CHARS, render_page
from diff_oracle.subject.capture import Diff, capture
from diff_oracle.subject.forward import Query
from diff_oracle.subject.sites import DiffSite, expand_sites

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_HOST_NAMES = frozenset({LOOPBACK, "localhost", "::1"})
_MAX_BYTES = 12 * MAX_CHARS + 4096  # JSON may write a character in twelve
_SITES_A_LINE = 16
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # no other page may put this one into a frame
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class ServeConfig:
    """What is served, and where."""

    oracle: str = "???"
    """A run directory of `diff_oracle.train`, an oracle's folder, or the id of one on the Hugging Face hub."""
    sites: SiteNames = field(default_factory=lambda: SiteNames(["layers", "components", "heads"]))
    """What is explained at a token; `sites=L3H2` and `sites=[L3H2,layers]` are short for `sites.names=[…]`."""
    port: int = 8765
    """On this machine; 0 takes a free one."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    run_dir: str | None = None
    """The log goes here."""


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


def serve(app: App, port: int) -> ThreadingHTTPServer:
    """A server on the loopback address, which answers once it is told to (`serve_forever`).

    Raises:
        ValueError: The port is taken or there is no such port.
    """

    class AppHandler(_Handler):
        pass

    AppHandler.app = app
    try:
        return ThreadingHTTPServer((LOOPBACK, port), AppHandler)
    except OverflowError as error:
        raise ValueError(f"port must be 0…65535, got {port}") from error
    except OSError as error:
        if error.errno != EADDRINUSE:
            raise
        raise ValueError(f"port {port} is taken: choose another one with port=, or port=0 for any") from error


class _Handler(BaseHTTPRequestHandler):
    """The page, and three questions that it asks in JSON."""

    app: App
    timeout = 60  # seconds that a browser may take to send what it announced

    def handle_one_request(self) -> None:
        """As always, but that a browser may go away whenever it likes."""
        with suppress(ConnectionError, TimeoutError):
            super().handle_one_request()

    def do_GET(self) -> None:
        if refusal := self._refusal():
            self._send_json({"error": refusal}, HTTPStatus.FORBIDDEN)
        elif urlsplit(self.path).path != "/":
            self._send_json({"error": "there is nothing here"}, HTTPStatus.NOT_FOUND)
        else:
            self._begin(HTTPStatus.OK, "text/html; charset=utf-8")
            self.wfile.write(self.app.page.encode())

    def do_POST(self) -> None:
        questions: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | Iterator[dict[str, Any]]]] = {
            "/read": self.app.read,
            "/explain": self.app.explain,
            "/ask": self.app.ask,
        }
        try:
            body = self._body()  # first, since a refusal that leaves it unread may not arrive
            if refusal := self._refusal() or self._foreign():
                self._send_json({"error": refusal}, HTTPStatus.FORBIDDEN)
                return
            if self.path not in questions:
                self._send_json({"error": "there is nothing here"}, HTTPStatus.NOT_FOUND)
                return
            answer = questions[self.path](_parse(body))
        except ValueError as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
            return
        if isinstance(answer, dict):
            self._send_json(answer)
        else:
            self._send_lines(answer)

    def _refusal(self) -> str | None:
        """Why nobody gets an answer here: a site that has its own name point to this machine is not this app."""
        return None if _host_name(self.headers.get("Host", "")) in _HOST_NAMES else "this app is not for that host"

    def _foreign(self) -> str | None:
        """Why a question is not one of the app's page."""
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            return "only the app's own page may ask"
        # A page elsewhere may send forms and plain text here unasked, but not JSON.
        return None if self.headers.get_content_type() == "application/json" else "questions are asked in JSON"

    def _body(self) -> bytes:
        """What was sent.

        Raises:
            ValueError: It does not say how long it is, or is too long.
        """
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and int(length) <= _MAX_BYTES):
            raise ValueError(f"a question says its length, at most {_MAX_BYTES} bytes, got {length!r}")
        return self.rfile.read(int(length))

    def _begin(self, status: HTTPStatus, content_type: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_json(self, content: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._begin(status, "application/json")
        self.wfile.write(json.dumps(content).encode())

    def _send_lines(self, parts: Iterator[Mapping[str, Any]]) -> None:
        """A line of JSON for each part, as soon as it is there; stops where the browser no longer listens."""
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        try:
            for part in parts:
                self.wfile.write(json.dumps(part, allow_nan=False).encode() + b"\n")
        except ValueError as error:  # the answer has begun: its status cannot say so any more
            self.wfile.write(json.dumps({"error": str(error)}).encode() + b"\n")

    def log_message(self, format: str, *args: Any) -> None:
        """To the log, not to the terminal."""
        logger.debug(format, *args)


def _parse(body: bytes) -> dict[str, Any]:
    """A question.

    Raises:
        ValueError: It is no JSON object.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("a question is written in JSON") from error
    if not isinstance(content, dict):
        raise ValueError("a question is a JSON object")
    return content


def _host_name(address: str) -> str | None:
    """A Host header without its port; None where it is none."""
    try:
        return urlsplit(f"//{address}").hostname
    except ValueError:
        return None


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


def load_app(oracle: str, sites: list[str], device: str = "auto") -> App:
    """The app of an oracle: a run directory, an oracle's folder, or an id on the hub.

    Raises:
        ValueError: There is no such oracle, or a site is unknown.
    """
    explainer, tasks = load_explainer(oracle, device=device)
    if "explanation" not in (task.name for task in tasks):
        explainer.free_question = None  # it was never taught to say what it wants
    return App(explainer, sites, oracle)


def run(config: ServeConfig) -> None:
    """Loads, then serves until Ctrl-C."""
    app = load_app(config.oracle, config.sites.names, config.device)
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
