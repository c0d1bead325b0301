"""Prefixes that a language model writes: by the model that reads them, or by one behind an endpoint.

What was written is kept in a journal, by what wrote it and what it was asked, and is never asked again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvguard.errors import KvguardError, foreign
from kvguard.store.journal import Journal
from kvguard.store.parts import digest
from kvguard.studies.directed.conditions import PARAPHRASE
from kvguard.studies.directed.examples import Example
from kvguard.studies.directed.params import WriterParams

_TIMEOUT = 120  # seconds
_ATTEMPTS = 5


@dataclass(frozen=True)
class Prompt:
    """A text to read, and what to write of it."""

    text: str
    instruction: str


@dataclass(frozen=True)
class Author:
    """What writes.

    Attributes
    ----------
    identity
        Names all that its texts depend on, but the prompts.
    write
        Prompts -> texts.
    """

    identity: str
    write: Callable[[Sequence[Prompt]], list[str]]


class Writer:
    """Texts by kind and example.

    Parameters
    ----------
    instructions
        Kind -> what is written of the document; of the question, where the kind is ``paraphrase``.
    journal
        Where texts are kept.
    """

    def __init__(self, author: Author, instructions: Mapping[str, str], journal: Journal) -> None:
        self._author, self._instructions, self._journal = author, instructions, journal
        self._known: dict[str, str] = {record["key"]: record["text"] for record in journal.records}

    @property
    def fingerprint(self) -> str:
        """Names all that the texts depend on, but the examples."""
        return digest([self._author.identity, dict(self._instructions)])

    def prepare(self, kinds: Iterable[str], examples: Sequence[Example]) -> None:
        """Write what is missing of these kinds for these examples, together."""
        wanted = [
            (kind, example)
            for kind in kinds
            for example in examples
            if not (kind == PARAPHRASE and example.paraphrase)
        ]
        prompts = {self._key(prompt): prompt for prompt in (self._prompt(*one) for one in wanted)}
        missing = {key: prompt for key, prompt in prompts.items() if key not in self._known}
        if not missing:
            return
        texts = [_one_line(text) for text in self._author.write(list(missing.values()))]
        made = dict(zip(missing, texts, strict=True))
        self._journal.add([{"key": key, "text": text} for key, text in made.items()])
        self._known |= made

    def text(self, kind: str, example: Example) -> str:
        """Return what was written; empty where the model had nothing to say."""
        self.prepare([kind], [example])
        return self._known[self._key(self._prompt(kind, example))]

    def _prompt(self, kind: str, example: Example) -> Prompt:
        if kind not in self._instructions:
            raise KvguardError(f"writer.instructions: there is none for {kind}: add it")
        text = example.question if kind == PARAPHRASE else example.context
        return Prompt(text, self._instructions[kind])

    def _key(self, prompt: Prompt) -> str:
        return digest([self._author.identity, prompt.text, prompt.instruction])


def endpoint(params: WriterParams) -> Author:
    """Return the author behind an OpenAI-compatible endpoint.

    Raises
    ------
    KvguardError
        The variable that should hold its key is not set.
    """
    assert params.base_url is not None
    url = f"{params.base_url.rstrip('/')}/chat/completions"
    headers = {}
    if params.api_key_env:
        key = os.environ.get(params.api_key_env)
        if not key:
            raise KvguardError(f"writer.api_key_env: {params.api_key_env} is not set: export it")
        headers["Authorization"] = f"Bearer {key}"

    def write(prompts: Sequence[Prompt]) -> list[str]:
        import httpx

        with httpx.Client(timeout=_TIMEOUT, headers=headers) as client:
            return [_said(client, url, params, prompt) for prompt in prompts]

    return Author(digest([url, params.model, params.max_new_tokens]), write)


def _said(client: Any, url: str, params: WriterParams, prompt: Prompt) -> str:
    import httpx
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    def passing(error: BaseException) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code in (408, 429) or error.response.status_code >= 500
        return isinstance(error, httpx.TransportError)

    body = {
        "model": params.model,
        "messages": [{"role": "user", "content": f"{prompt.text}\n\n{prompt.instruction}"}],
        "max_tokens": params.max_new_tokens,
        "temperature": 0,
    }
    with foreign(f"writer: {url}", "check writer.base_url, writer.model and its key"):
        for attempt in Retrying(
            retry=retry_if_exception(passing),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_exponential(0.5, 10),
            reraise=True,
        ):
            with attempt:
                answer = client.post(url, json=body)
                answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"] or "")


def _one_line(text: str) -> str:
    """Return the first line of a text that has something on it."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return next((line for line in lines if line), "")
