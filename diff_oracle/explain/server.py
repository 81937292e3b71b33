"""The app's page and its answers over HTTP, to this machine alone. Between `diff_oracle.serve` and the browser.

Only the app's own page may ask: a request that names another host (a foreign site whose name was pointed at this
machine), comes from another page, or is no JSON is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from errno import EADDRINUSE
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from diff_oracle.explain.page import MAX_CHARS

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_HOST_NAMES = frozenset({LOOPBACK, "localhost", "::1"})
_MAX_BYTES = 12 * MAX_CHARS + 4096  # JSON may write a character in twelve
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # no other page may put this one into a frame
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@runtime_checkable
class Answers(Protocol):
    """What is served: a page, and answers to what it asks. A ValueError says what is wrong with a question."""

    page: str

    def read(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """A text's tokens."""
        ...

    def explain(self, content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Explanations, some at a time."""
        ...

    def ask(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a question of one's own."""
        ...


def serve(app: Answers, port: int) -> ThreadingHTTPServer:
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

    app: Answers
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
