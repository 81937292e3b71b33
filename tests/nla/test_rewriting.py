"""Wordings from a language model: only what makes the same claims counts, whoever is asked, and it is asked once."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from diff_oracle.nla.chat import Endpoint, LocalChat, Messages, Remembered
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.nla.rewriting import RewritingConfig, collect, more_wordings, question, words_of
from diff_oracle.nla.training import ReadingConfig, ReadingDataset
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.tasks.claims import WORDINGS, Claim, parse, write
from tests.helpers import random_loaded
from tests.nla.test_reconstructor import made, readable_rows
from tests.tasks.made import VOCABULARY

(SPACED, PLAIN) = (next(i for i, t in enumerate(VOCABULARY.texts) if t == text) for text in (" return", "return"))
COLON = VOCABULARY.find(":")
assert COLON is not None
GOLD = [
    [Claim("raises", SPACED), Claim("raises", COLON), Claim("lowers", PLAIN), Claim("skipped", "no change")],
    [Claim("lowers", SPACED), Claim("reads", "only the sink")],
    [],
]
OTHER = {"raises": "lifts", "lowers": "pushes down", "reads": "looks upon", "skipped": "else it is"}


def reword(messages: Messages) -> str:
    """A model that does as it is told, with what chat models say around it."""
    lines = messages[-1]["content"].split("\n")
    said = [re.sub(r"(\d+\. )(\w+):\s*", lambda m: f"{m[1]}{OTHER[m[2]].capitalize()}: ", line) for line in lines]
    return "Sure:\n\n" + "\n".join(reversed(said)) + "\n"


def test_words_are_read_off_whatever_the_order_and_the_spaces() -> None:
    answer = reword(question(GOLD[0], VOCABULARY))
    assert words_of(answer, GOLD[0], VOCABULARY) == ["lifts", "lifts", "pushes down", "else it is"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Lifts: return", "Lifts: yield"),  # another token
        ("2. Lifts: :\n", ""),  # one claim less
        ("Sure:\n", "5. Lifts: return\n"),  # one more
        ("Sure:\n", "1. Lifts: return\n"),  # one twice
        ("Lifts: return", "Lowers: return"),  # the word of another kind
        ("Lifts: return", "**Lifts**: return"),
        ("Lifts: return", ": return"),
        ("no change", "a change"),
    ],
)
def test_an_answer_that_makes_other_claims_is_refused(old: str, new: str) -> None:
    answer = reword(question(GOLD[0], VOCABULARY))
    assert old in answer
    assert words_of(answer.replace(old, new), GOLD[0], VOCABULARY) is None


class Scripted:
    """A chat model that says what a function says, and counts."""

    identity = "scripted"

    def __init__(self, answer: Callable[[Messages], str]) -> None:
        self._answer, self.asked = answer, 0

    def __call__(self, messages: Messages) -> str:
        self.asked += 1
        return self._answer(messages)


def test_every_text_in_the_new_words_says_which_claims_it_makes() -> None:
    """Words that were used for two kinds are dropped, and an explanation in what is left can be taken apart again."""
    mixed = Scripted(lambda m: reword(m).replace("Looks upon", "Pushes down"))
    wordings = collect(mixed, GOLD[:2], VOCABULARY)
    assert wordings["raises"] == (*WORDINGS["raises"], "lifts")
    assert wordings["lowers"] == WORDINGS["lowers"] and wordings["reads"] == WORDINGS["reads"]
    wordings = collect(Scripted(reword), GOLD[:2], VOCABULARY)
    assert {kind: words[-1] for kind, words in wordings.items()} == OTHER
    dataset = ReadingDataset(GOLD, ReadingConfig(reworded=1.0, shortened=0.0), 90, 0, wordings)
    shown = [(row, VOCABULARY.show(text)) for row, text in (dataset[i] for i in range(90))]
    for row, text in shown:
        parsed = parse(text, VOCABULARY, wordings)
        assert set(parsed.claims) == set(GOLD[row]) and not parsed.other_lines
    seen = {line.partition(":")[0] for _, text in shown for line in text.split("\n") if line}
    assert seen == {words for of_kind in wordings.values() for words in of_kind}
    plain = ReadingDataset(GOLD, ReadingConfig(reworded=0.0), 30, 0, wordings)
    assert [plain[i] for i in range(30)] == [
        ReadingDataset(GOLD, ReadingConfig(reworded=0.0), 30, 0)[i] for i in range(30)
    ]


def test_a_reconstructor_knows_a_claim_by_the_new_words_and_keeps_them(tmp_path: Path) -> None:
    """Its floor reads the claims, whatever words they are in."""
    model = made(floor=True)
    rows = readable_rows(model, 20)
    model.fit_floor(rows, rows, (rows.gold, rows.gold))
    record, texts = rows.records[0], [write(rows.gold[0]), ("lifts:", rows.gold[0][0].said)]
    usual, unknown = model.batch([record] * 2, texts)["floor"]
    assert not torch.allclose(usual, unknown)
    model.wordings = collect(Scripted(reword), GOLD[:2], VOCABULARY)
    usual, known = model.batch([record] * 2, texts)["floor"]
    torch.testing.assert_close(usual, known)
    model.save(tmp_path)
    assert Reconstructor.from_pretrained(tmp_path).wordings == model.wordings


def test_a_model_that_does_not_follow_is_named() -> None:
    with pytest.raises(ValueError, match="none of 2 rewordings makes the claims .* The last one: 'I cannot do that"):
        collect(Scripted(lambda _: "I cannot do that."), GOLD[:2], VOCABULARY)


def test_what_was_asked_is_not_asked_again(tmp_path: Path) -> None:
    """A run that was killed behind its first answer goes on with the second."""

    class Killed(Scripted):
        def __call__(self, messages: Messages) -> str:
            if self.asked == 1:
                raise KeyboardInterrupt
            return super().__call__(messages)

    with pytest.raises(KeyboardInterrupt):
        collect(Remembered(Killed(reword), tmp_path), GOLD[:2], VOCABULARY)
    chat = Scripted(reword)
    again = collect(Remembered(chat, tmp_path), GOLD[:2], VOCABULARY)
    assert chat.asked == 1 and again == collect(Scripted(reword), GOLD[:2], VOCABULARY)
    other = Scripted(reword)
    other.identity = "another"
    collect(Remembered(other, tmp_path), GOLD[:2], VOCABULARY)
    assert other.asked == 2  # its answers are its own
    for file in tmp_path.iterdir():
        assert json.loads(file.read_text())["chat"] in ("scripted", "another")
        file.write_text("{")
    with pytest.raises(ValueError, match=r"\.json is damaged: delete it"):
        collect(Remembered(chat, tmp_path), GOLD[:2], VOCABULARY)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Server = self.server  # type: ignore[assignment]
        server.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **asked})
        code, content = server.answers.pop(0) if server.answers else (200, completion(reword(asked["messages"])))
        if code == 0:
            server.over.wait(60)
        self.send_response(code or 200)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Answers as it is told to, then as a model that does as it is told; answer 0 comes when all is over."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, str]] = []
        self.seen: list[dict[str, object]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        pass  # a client that did not wait


def completion(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield started
    started.over.set()
    started.shutdown()
    thread.join()
    started.server_close()


def test_an_endpoint_is_asked_for_gold_explanations_with_the_key_of_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    config = RewritingConfig("endpoint", server.url, "some-model", "MY_KEY", cache_dir=str(tmp_path))
    wordings = more_wordings(config, GOLD, VOCABULARY, seed=0)
    assert {kind: words[-1] for kind, words in wordings.items()} == OTHER
    assert [(seen["path"], seen["key"], seen["model"]) for seen in server.seen] == [
        ("/v1/chat/completions", "Bearer secret", "some-model")
    ] * 2
    assert "secret" not in "".join(file.read_text() for file in tmp_path.iterdir())
    assert more_wordings(config, GOLD, VOCABULARY, seed=0) == wordings and len(server.seen) == 2
    monkeypatch.delenv("MY_KEY")
    assert Endpoint(server.url, "some-model", None)([{"role": "user", "content": "1. raises: a"}])
    assert server.seen[-1]["key"] is None


def test_an_endpoint_that_is_busy_or_late_is_asked_again(server: Server) -> None:
    server.answers += [(503, "starting"), (429, "slow down"), (0, "too late")]
    assert "Lifts" in Endpoint(server.url, "m", None, timeout_s=1.0, wait_s=0.01)([{"content": "1. raises: a"}])
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("answers", "times", "said"),
    [
        ([(401, "bad key")], 1, "refused the key .HTTP 401: bad key"),
        ([(404, "no such model")], 1, "refused the question .HTTP 404: no such model"),
        ([(500, "")] * 3, 3, "gave no answer in 3 attempts, the last time: HTTP 500: nothing"),
        ([(0, "")] * 3, 3, "gave no answer in 3 attempts, the last time: timed out"),
        ([(200, "<html>")], 1, "gave no chat completion: .* of <html>"),
        ([(200, '{"choices": []}')], 1, "gave no chat completion"),
        ([(200, '{"choices": [{"message": {"content": null}}]}')], 1, "gave no chat completion"),
    ],
)
def test_what_an_endpoint_does_wrong_is_said(
    server: Server, answers: list[tuple[int, str]], times: int, said: str
) -> None:
    server.answers += answers
    late = bool(answers) and answers[0][0] == 0
    chat = Endpoint(server.url, "m", "secret", timeout_s=0.2 if late else 20.0, retries=2, wait_s=0.01)
    with pytest.raises(ValueError, match=said) as raised:
        chat([{"role": "user", "content": "1. raises: a"}])
    assert len(server.seen) == times and "secret" not in str(raised.value)


def test_an_address_where_nobody_is_is_said(server: Server) -> None:
    server.server_close()
    with pytest.raises(ValueError, match="gave no answer in 2 attempts, the last time: .*refused"):
        Endpoint(server.url, "m", None, retries=1, wait_s=0.01)([])


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<{{ m.content }}>{% endfor %}ANSWER:"])
def test_a_local_model_goes_on_with_the_question(template: str | None) -> None:
    loaded = random_loaded()
    loaded.tokenizer.chat_template = template
    prompts: list[str] = []
    generate = loaded.model.generate

    def watched(ids: object, **options: object) -> object:
        prompts.append(loaded.tokenizer.decode(ids[0]))  # type: ignore[index]
        return generate(ids, **options)  # type: ignore[operator]

    loaded.model.generate = watched  # type: ignore[method-assign]
    chat, messages = LocalChat(loaded), [{"role": "user", "content": "1. raises: a"}]
    answer = chat(messages)
    assert answer == chat(messages) and answer
    shown = "1. raises: a\n\n" if template is None else "<1. raises: a>ANSWER:"
    assert prompts[0].replace("<|endoftext|>", "").endswith(shown) and answer not in prompts[0]
    assert "\n\n" not in answer or template is not None


def test_a_model_on_this_machine_that_only_babbles_gives_no_wordings(tmp_path: Path) -> None:
    config = RewritingConfig("local", local=SubjectConfig(source="random"), cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="none of 2 rewordings makes the claims of its explanation"):
        more_wordings(config, GOLD, VOCABULARY, seed=0)
    assert len(list(tmp_path.iterdir())) == 2


def test_nobody_is_asked_where_nobody_is_named_and_wrong_settings_are_refused() -> None:
    assert more_wordings(RewritingConfig(), GOLD, VOCABULARY, seed=0) == WORDINGS
    for settings, said in (
        ({"source": "llm"}, "unknown rewriting.source 'llm': choose from none, endpoint, local"),
        ({"source": "endpoint", "url": "file:///etc"}, "rewriting.url must begin with http"),
        ({"source": "endpoint", "url": "http://x"}, r"add rewriting\.model=NAME"),
        ({"num_explanations": 0}, "rewriting.num_explanations must be above 0"),
        ({"retries": -1}, "rewriting.retries must be at least 0"),
    ):
        with pytest.raises(ValueError, match=said):
            RewritingConfig(**settings)  # type: ignore[arg-type]
