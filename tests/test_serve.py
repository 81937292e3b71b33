"""The app answers this machine and its own page alone, streams what it finds, and says what is wrong in one line."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import diff_oracle.serve as serve_module
from diff_oracle import diffs_of_text
from diff_oracle.cli import compose
from diff_oracle.explain import Explainer
from diff_oracle.explain.page import MAX_CHARS
from diff_oracle.explain.server import serve
from diff_oracle.serve import App, ServeConfig
from diff_oracle.subject.model import Subject
from diff_oracle.tasks import make_tasks
from tests.browsing import chromium, opened, serious_violations
from tests.explain.conftest import untrained_oracle

TEXT = "The value is returned by the function"
SITES = ["layers", "L0H1", "L2.mlp"]


@contextmanager
def running(app: App) -> Iterator[int]:
    """A server in a thread of its own, on a free port."""
    with serve(app, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    oracle = untrained_oracle()
    # Few questions: an untrained oracle answers each at full length.
    explainer = Explainer(Subject.load(oracle.base), oracle, make_tasks({"logit_lens": {}}), free_question=None)
    made = App(explainer, SITES, "runs/demo")
    yield made
    made.close()


@pytest.fixture(scope="module")
def port(app: App) -> Iterator[int]:
    with running(app) as number:
        yield number


def send(
    port: int, path: str, content: Any, method: str = "POST", **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    """Status, headers and body of the answer; an empty header is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    connection.request(method, path, body, {name: text for name, text in named.items() if text})
    response = connection.getresponse()
    answer = response.status, response.headers, response.read().decode()
    connection.close()
    return answer


def test_serve_composes() -> None:
    config = compose("serve", ServeConfig, ["oracle=runs/demo", "port=9000"])
    assert (config.sites.names, config.port) == (["layers", "components", "heads"], 9000)


def test_the_command_loads_what_it_names_and_ends_with_ctrl_c(
    app: App, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []

    def load(oracle: str, sites: list[str], device: str, nla: None) -> App:
        loaded.append((oracle, sites, device))
        return App(app.explainer, sites, oracle)

    def interrupted(server: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve_module, "load_app", load)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    words = ["oracle=runs/demo", "sites=[L1,heads]", "port=0", "device=cpu", f"run_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["serve", *words])
    serve_module.main()
    assert loaded == [("runs/demo", ["L1", "heads"], "cpu")]
    assert re.fullmatch(r"http://localhost:\d+/  \(Ctrl-C ends it\)\n", capsys.readouterr().out)


def test_what_streams_in_is_what_explaining_gives(app: App, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "_SITES_A_LINE", 3)
    status, _, body = send(port, "/explain", {"text": TEXT, "position": 5})
    lines = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and [len(line["items"]) for line in lines] == [3, 3, 2]
    assert {line["total"] for line in lines} == {8}
    read = app.explainer.read(TEXT)
    (expected,) = app.explainer.explain([read], app.explainer.queries([read], SITES, 5))
    for got, item in zip([item for line in lines for item in line["items"]], expected, strict=True):
        assert (got["site"], got["promoted"]) == (item.site, [list(pair) for pair in item.promoted])
        assert got["relative_size"] == pytest.approx(item.relative_size, rel=1e-4)
        assert [answer["question"] for answer in got["answers"]] == [answer.question for answer in item.answers]


def test_a_text_is_read_as_the_subject_reads_it(app: App, port: int) -> None:
    status, headers, body = send(port, "/read", {"text": TEXT})
    assert status == 200 and json.loads(body) == asdict(app.explainer.read(TEXT))
    assert headers["Content-Type"] == "application/json" and headers["X-Content-Type-Options"] == "nosniff"


def test_a_question_reaches_the_oracle(app: App, port: int) -> None:
    question = {"text": TEXT, "position": 5, "site": "L2.mlp", "question": "Raises?"}
    (diff,) = diffs_of_text(app.explainer.subject, TEXT, ["L2.mlp"], [5])
    status, _, body = send(port, "/ask", question)
    assert status == 200 and json.loads(body) == {"answer": app.explainer.oracle.ask(diff, "Raises?")}


def test_lines_arrive_while_the_rest_is_still_worked_on(capfd: pytest.CaptureFixture[str]) -> None:
    class Slow(App):
        def __init__(self) -> None:
            self.page, self.go_on, self.left = "", threading.Event(), threading.Event()

        def explain(self, content: Any) -> Iterator[dict[str, Any]]:
            try:
                yield {"items": ["first"], "total": 2}
                self.go_on.wait(30)
                while True:
                    yield {"items": ["x" * 100_000], "total": 2}
            finally:
                self.left.set()

    slow = Slow()
    with running(slow) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/explain", b"{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert json.loads(response.readline()) == {"items": ["first"], "total": 2}
        response.close()  # the browser has gone to another token
        connection.close()
        slow.go_on.set()
        assert slow.left.wait(30)  # endless work has ended
    assert capfd.readouterr().err == ""


def test_what_goes_wrong_in_the_midst_is_the_last_line() -> None:
    class Broken(App):
        def __init__(self) -> None:
            self.page = ""

        def explain(self, content: Any) -> Iterator[dict[str, Any]]:
            yield {"items": [], "total": 2}
            raise ValueError("activations are not finite")

    with running(Broken()) as port:
        status, _, body = send(port, "/explain", {})
    assert status == 200
    assert [json.loads(line) for line in body.splitlines()] == [
        {"items": [], "total": 2}, {"error": "activations are not finite"}
    ]  # fmt: skip


def test_only_this_machine_is_listened_to(app: App) -> None:
    with serve(app, port=0) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(ValueError, match=f"port {server.server_port} is taken"):
            serve(app, server.server_port)
    with pytest.raises(ValueError, match="port must be 0…65535, got 70000"):
        serve(app, 70000)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:{port}", "[::1", "0.0.0.0"])
def test_another_host_is_refused(port: int, host: str) -> None:
    """A page of evil.example whose name was made to point here would otherwise be the app's own page."""
    host = host.format(port=port)
    for method, path in (("GET", "/"), ("POST", "/read")):
        status, _, body = send(port, path, {"text": TEXT}, method, Host=host, Origin=f"http://{host}")
        assert (status, json.loads(body)) == (403, {"error": "this app is not for that host"})


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "[::1]:80", "127.0.0.1:1", "LOCALHOST"])
def test_every_name_of_this_machine_is_answered(port: int, host: str) -> None:
    status, headers, body = send(port, "/", b"", "GET", Host=host)
    assert status == 200 and body.startswith("<!DOCTYPE html>")
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert send(port, "/read", {"text": TEXT}, Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
def test_another_page_is_refused(port: int, origin: str) -> None:
    status, _, body = send(port, "/read", {"text": TEXT}, Origin=origin)
    assert (status, json.loads(body)) == (403, {"error": "only the app's own page may ask"})


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_form_may_send_is_refused(port: int, kind: str) -> None:
    assert send(port, "/read", {"text": TEXT}, Content_Type=kind)[0] == 403


ASKED = {"text": TEXT, "position": 5, "site": "L0", "question": "Raises?"}


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("/read", {"text": ""}, "text must be text of 1 to 20000 characters, got 0 characters"),
        ("/read", {"text": "a" * (MAX_CHARS + 1)}, "got 20001 characters"),
        ("/read", {"text": ["a"]}, "got ['a']"),
        ("/read", {}, "got None"),
        ("/read", {"text": "\ud800"}, "text holds half a character"),
        ("/read", {"text": "word " * 3000}, "tokens, but tiny reads at most 1024"),
        ("/read", b"{", "a question is written in JSON"),
        ("/read", b"[" * 100_000, "a question is written in JSON"),
        ("/read", b"\xff", "a question is written in JSON"),
        ("/read", [], "a question is a JSON object"),
        ("/explain", {"text": TEXT, "position": 0}, "position 0 is out of range"),
        ("/explain", {"text": TEXT, "position": 99}, "position 99 is out of range"),
        ("/explain", {"text": TEXT, "position": "all"}, "position must be a whole number, got 'all'"),
        ("/explain", {"text": TEXT, "position": True}, "position must be a whole number, got True"),
        ("/ask", ASKED | {"site": "L99"}, "site 'L99' is out of range"),
        ("/ask", ASKED | {"site": "heads"}, "malformed site 'heads'"),
        ("/ask", ASKED | {"question": "?" * 501}, "question must be text of 1 to 500 characters"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(port: int, path: str, content: Any, said: str) -> None:
    status, _, body = send(port, path, content)
    assert status == 400 and said in json.loads(body)["error"]
    assert send(port, "/read", {"text": TEXT})[0] == 200  # and the next one is answered


def test_a_slot_in_a_question_is_refused(app: App, port: int) -> None:
    slot = app.explainer.oracle.vocabulary.texts[app.explainer.oracle.prompts.slot_id]
    status, _, body = send(port, "/ask", ASKED | {"question": f"a{slot}b"})
    assert status == 400 and "slot" in json.loads(body)["error"]


def test_what_is_too_large_is_not_even_read(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/read", None, {"Content-Type": "application/json", "Content-Length": str(10**12)})
    response = connection.getresponse()
    assert response.status == 400 and "at most" in json.loads(response.read())["error"]


def test_there_is_nothing_else(port: int) -> None:
    assert send(port, "/favicon.ico", b"", "GET")[0] == 404
    assert send(port, "/../serve.py", b"", "GET")[0] == 404
    assert send(port, "/page", {})[0] == 404
    assert send(port, "/read", {"text": TEXT}, "PUT")[0] == 501
    assert send(port, "/read", {"text": TEXT}, "OPTIONS")[0] == 501  # what asks whether another page may


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def test_the_app_in_a_browser(browser: Any, app: App, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "_SITES_A_LINE", 3)  # eight steps come in three parts
    evil = "</script><script>alert(1)</script> by"
    with opened(browser, f"http://localhost:{port}/", viewport={"width": 1280, "height": 900}) as page:
        assert serious_violations(page) == []
        page.get_by_label("A text of your own").fill(f"{TEXT} {evil}")
        page.get_by_role("button", name="Read").click()
        tokens = app.explainer.read(f"{TEXT} {evil}").tokens
        page.locator("#map td[data-site]").nth(7).wait_for()
        assert page.locator("#tokens [role=option]").count() == len(tokens)
        assert page.locator("#tokens").inner_text() == "".join(tokens)
        assert page.locator("#site-heading").inner_text().endswith(f"at token {len(tokens) - 1}")
        page.locator("#tokens [data-position='4']").click()
        page.locator("#tokens [data-position='5']").click()  # what was begun for the other is given up
        page.locator("#list tbody tr[data-position='5']").nth(7).wait_for()
        page.locator("#tokens [data-position='4']").click()  # and begun anew
        page.locator("#list tbody tr[data-position='4']").nth(7).wait_for()
        assert page.locator("#list tbody tr[data-position='4']").count() == 8
        page.locator("#tokens [data-position='5']").click()
        page.locator("#map td[data-site='L0H1']").click()
        assert page.locator("#site-heading").inner_text() == "L0H1 at token 5"
        (diff,) = diffs_of_text(app.explainer.subject, TEXT, ["L0H1"], [5])
        page.get_by_label("Ask about this step").fill("Raises? <b>")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator(".asked").wait_for()
        said = page.locator(".asked .token").evaluate_all("all => all.map(chip => chip.textContent)")
        expected = [line for line in app.explainer.oracle.ask(diff, "Raises? <b>").split("\n") if line]
        assert [line.replace("␣", " ") for line in said] == expected
        assert page.locator(".asked dd").first.inner_text() == "Raises? <b>"
        assert serious_violations(page) == []
        assert page.locator("#trouble").inner_text() == ""


def test_the_app_in_the_dark_on_a_phone(browser: Any, port: int) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    with opened(browser, f"http://localhost:{port}/", **phone) as page:
        page.get_by_label("A text of your own").fill(TEXT)
        page.get_by_role("button", name="Read").click()
        page.locator("#map td[data-site]").nth(7).wait_for()
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_app_says_what_is_wrong(browser: Any, port: int) -> None:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_label("A text of your own").fill("word " * 3000)
    page.get_by_role("button", name="Read").click()
    page.locator("#trouble:not(:empty)").wait_for()
    assert "tokens, but tiny reads at most 1024" in page.locator("#trouble").inner_text()
    page.close()
