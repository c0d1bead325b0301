"""Counting tokens as the served model does: by asking the server, or with its tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from kvguard.errors import KvguardError, foreign

_AT_ONCE = 64


class Counter(Protocol):
    """Counts the tokens of prompts."""

    @property
    def name(self) -> str:
        """What counts, as the manifest says it."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""


class LocalCounter:
    """A ``tokenizer.json``; what a chat template adds around a prompt is not counted."""

    def __init__(self, folder: str) -> None:
        path = Path(folder.removeprefix("path:"))
        file = path if path.suffix == ".json" else path / "tokenizer.json"
        if not file.is_file():
            raise KvguardError(
                f"model.tokenizer: no tokenizer.json at {path}: name its folder, or say `served`"
            )
        from tokenizers import Tokenizer

        with foreign(f"model.tokenizer: {file}", "name another"):
            self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.name = path.name if path.suffix != ".json" else path.parent.name

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        found: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            batch = list(texts[start : start + _AT_ONCE])
            found += [len(one) for one in self._tokenizer.encode_batch_fast(batch)]
        return found


class ServedCounter:
    """``POST /tokenize`` of the endpoint: whole prompts, what a chat template adds among them."""

    def __init__(self, client: httpx.Client, base_url: str, model: str, api: str) -> None:
        self._client, self._model, self._api = client, model, api
        self._url = f"{base_url.rstrip('/').removesuffix('/v1')}/tokenize"
        self.name = f"served:{model}"

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> int:
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": text}]} if self._api == "chat" else {"prompt": text}
        )
        said = "no answer"
        for body in (
            {"model": self._model, **asked},
            {"content": text, "add_special": True},
        ):  # llama.cpp's last
            try:
                answer = self._client.post(self._url, json=body)
            except httpx.HTTPError as error:
                said = f"{type(error).__name__}: {error}"
                continue
            said = f"status {answer.status_code}"
            if answer.is_success and isinstance(found := _json(answer), dict):
                if isinstance(found.get("count"), int):
                    return int(found["count"])
                if isinstance(found.get("tokens"), list) and (found["tokens"] or not text):
                    return len(found["tokens"])
        raise KvguardError(
            f"{self._url}: counts no tokens ({said}): give model.tokenizer the folder of the model's "
            f"tokenizer.json"
        )


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None
