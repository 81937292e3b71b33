"""Chat models that are asked for text: behind an OpenAI-compatible address, or on this machine; answers are kept."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from diff_oracle.subject.loading import LoadedModel

Messages = Sequence[dict[str, str]]
"""`{"role": "user" | "assistant", "content": …}`. No system role, which some models do not know."""
AGAIN = (408, 409, 429)  # HTTP answers that may be another one later; so are those from 500


@runtime_checkable
class Chat(Protocol):
    """A chat model."""

    @property
    def identity(self) -> str:
        """What its answers depend on, beside the messages."""

    def __call__(self, messages: Messages) -> str:
        """Its answer."""


class Endpoint:
    """A model behind `URL/chat/completions`.

    Args:
        url: Up to and with the version, as in http://localhost:8000/v1.
        model: Its name there.
        key: Sent as a bearer token where there is one.
        timeout_s: Seconds without an answer after which it is asked again.
        retries: How often it is asked again.
        wait_s: Seconds before that; twice as many each time.
    """

    def __init__(
        self, url: str, model: str, key: str | None, timeout_s: float = 60.0, retries: int = 4, wait_s: float = 2.0
    ) -> None:
        self._url, self._model = f"{url.rstrip('/')}/chat/completions", model
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._timeout_s, self._retries, self._wait_s = timeout_s, retries, wait_s
        self.identity = f"{self._url} {model}"

    def __call__(self, messages: Messages) -> str:
        """The answer.

        Raises:
            ValueError: There is none after all retries, the key or the question was refused, or the answer is none.
        """
        content = json.dumps({"model": self._model, "messages": list(messages)}).encode()
        failure = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._wait_s * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(self._url, content, self._headers)
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    return self._answer(response.read())
            except urllib.error.HTTPError as error:
                failure = f"HTTP {error.code}: {_start(error.read())}"
                if error.code in (401, 403):
                    raise ValueError(f"{self._url} refused the key ({failure})") from error
                if error.code < 500 and error.code not in AGAIN:
                    raise ValueError(f"{self._url} refused the question ({failure})") from error
            except (OSError, http.client.HTTPException) as error:
                failure = str(error) or type(error).__name__
        raise ValueError(f"{self._url} gave no answer in {self._retries + 1} attempts, the last time: {failure}")

    def _answer(self, content: bytes) -> str:
        try:
            answer = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = None
        if not isinstance(answer, str):
            raise ValueError(f"{self._url} gave no chat completion: no text in choices[0].message of {_start(content)}")
        return answer


class LocalChat:
    """A model on this machine, decoded greedily.

    One without a chat template goes on with the messages' text, and what it says ends at an empty line.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.identity = f"{loaded.identity.weights_hash} {loaded.identity.tokenizer_hash}"

    @torch.no_grad()
    def __call__(self, messages: Messages) -> str:
        """The answer, at most twice as long as the last message."""
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        has_template = bool(tokenizer.chat_template)
        if has_template:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        else:
            text = "".join(f"{message['content']}\n\n" for message in messages)
        ids = torch.tensor([tokenizer.encode(str(text), add_special_tokens=not has_template)], device=model.device)
        most = 32 + 2 * len(tokenizer.encode(messages[-1]["content"]))
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0
        )
        answer = str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        return answer if has_template else answer.partition("\n\n")[0]


class Remembered:
    """A chat model that is asked the same but once: every answer is a file, named by who was asked and what."""

    def __init__(self, chat: Chat, folder: Path) -> None:
        self._chat, self._folder, self.identity = chat, folder, chat.identity

    def __call__(self, messages: Messages) -> str:
        """The answer.

        Raises:
            ValueError: A file is damaged.
        """
        asked = json.dumps({"chat": self.identity, "messages": list(messages)})
        file = self._folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
        if not file.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}")  # so that a file is whole, whenever the process is killed
            partial.write_text(json.dumps({"answer": self._chat(messages), **json.loads(asked)}, indent=1) + "\n")
            partial.rename(file)
        try:
            return str(json.loads(file.read_text())["answer"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{file} is damaged: delete it, and the model is asked again") from error


def _start(content: bytes) -> str:
    """The first letters of an answer, in one line."""
    return " ".join(content[:200].decode(errors="replace").split()) or "nothing"
