"""A model behind an OpenAI-compatible address, as a predictor: retried with patience, and asked nothing twice.

The key comes from the environment variable ACCLIMATE_API_KEY alone; it is written nowhere and shown nowhere.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.errors import ModelError, UsageError
from acclimate.evaluation.predictor import Tick
from acclimate.training.checkpoint import atomic_write

KEY = "ACCLIMATE_API_KEY"
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # statuses that another try may cure
LONGEST = 4 << 20  # bytes of a reply
WAIT = 60.0  # seconds, at most, between two tries
SHOWN = 200  # characters of a refusal that an error shows
NEAR = ("localhost", "127.0.0.1", "::1")


class Direct(HTTPRedirectHandler):
    """Follows nobody elsewhere: the key is meant for one address."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """None: the redirect is an error."""


@dataclass(frozen=True)
class Endpoint:
    """What the model behind `url` writes after the template's prompt, at temperature 0.

    url: up to and with /v1. kept: the folder of answers by content of their requests; what is there is not asked again.
    timeout: seconds of one try. pause: seconds before the second try, doubled before each that follows.
    """

    url: str
    model: str
    template: Template
    kept: Path
    max_new: int = 512
    timeout: float = 120.0
    tries: int = 6
    pause: float = 1.0
    at_once: int = 4
    opener: OpenerDirector | None = None
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        checked_address(self.url)
        prompts = [self.template.question(example) for example in examples]
        texts = []
        with ThreadPoolExecutor(self.at_once) as pool:
            waiting = {prompt: pool.submit(self._answer, prompt) for prompt in dict.fromkeys(prompts)}
            try:
                for prompt in prompts:
                    texts.append(waiting[prompt].result())
                    if tick is not None:
                        tick(1)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return [Output(text) for text in texts]

    def _answer(self, prompt: str) -> str:
        system = [{"role": "system", "content": self.template.system}] if self.template.system else []
        messages = [*system, {"role": "user", "content": prompt}]
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_new}
        place = self._place(asked)
        known = _known(place, asked)
        if known is None:
            known = self._reply(asked)
            place.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(place, json.dumps({"request": asked, "answer": known}, ensure_ascii=False) + "\n")
        return known

    def _place(self, asked: Mapping[str, Any]) -> Path:
        """Where the answer to this request is kept."""
        name = sha256(json.dumps([self.url.rstrip("/"), asked], sort_keys=True).encode()).hexdigest()
        return self.kept / f"{name}.json"

    def _reply(self, asked: Mapping[str, Any]) -> str:
        """Ask until there is an answer; ModelError where there is none after all tries, or never will be."""
        said = ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(min(WAIT, self.pause * 2 ** (attempt - 1)))
            try:
                return content(self._post(asked))
            except HTTPError as error:
                said = _refusal(error)
                if error.code not in PASSING:
                    break
            except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
                said = f"no answer ({_plain(str(getattr(error, 'reason', error) or type(error).__name__))})"
        raise ModelError(f"The judge {self.model} at {self.url}: {said}, after {attempt + 1} of {self.tries} tries.")

    def _post(self, asked: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps(asked, ensure_ascii=False).encode()
        request = Request(f"{self.url.rstrip('/')}/chat/completions", body, headers, method="POST")
        opener = self.opener or build_opener(Direct)
        with opener.open(request, timeout=self.timeout) as reply:
            return bytes(reply.read(LONGEST))


def checked_address(url: str) -> None:
    """UsageError for an address that holds a secret, or that would carry the key unencrypted to another machine."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("The address of a judge begins with https:// or http:// and names a host.")
    if parts.username or parts.password or parts.query:
        raise UsageError(f"The address of a judge at {parts.hostname} holds no name, key or query; set {KEY} instead.")
    if parts.scheme == "http" and parts.hostname not in NEAR and os.environ.get(KEY):
        raise UsageError(f"{KEY} would travel to {parts.hostname} unencrypted; use https:// or unset it.")


def content(reply: bytes) -> str:
    """The text of the first choice of a chat completion. ModelError where there is none."""
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ModelError(f"The judge's reply is no chat completion: {_plain(reply.decode(errors='replace'))!r}.")
    return text


def _known(place: Path, asked: Mapping[str, Any]) -> str | None:
    """The answer that is kept; None where there is none, or a damaged one."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        answer = found["answer"] if found["request"] == asked else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if isinstance(answer, str) else None


def _refusal(error: HTTPError) -> str:
    try:
        said = _plain(error.read(LONGEST).decode(errors="replace"))
    except (OSError, HTTPException):
        said = ""
    hint = f"; is {KEY} right?" if error.code in (401, 403) else ""
    return f"status {error.code} {_plain(said or str(error.reason))}{hint}"


def _plain(text: str) -> str:
    """What an error may show of somebody else's text: one line, short, without the key."""
    key = os.environ.get(KEY)
    shown = text.replace(key, "…") if key else text
    return " ".join(shown.split())[:SHOWN]
