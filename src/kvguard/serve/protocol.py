"""What clients may ask, in OpenAI's words; what is not supported is rejected by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvguard.serve.errors import Rejected

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Most = Annotated[int, Field(ge=0, le=20)]  # of the likeliest tokens
Word = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # as JSON has the keys of an object
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]

# What is not supported, and the values of it that ask for nothing: many clients send them all the same.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logprobs": (False,),
    "metadata": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(_Asked):
    """How a stream tells its usage, and whether it tells what was seen of each token."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False
    kvguard: bool = False


class Choosing(_Asked):
    """What a request may choose of compression and guard; None: as the server was started."""

    compressor: Word | None = None
    ratio: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = None
    guard: bool | None = None
    action: Literal["none", "restore", "rollback", "restart"] | None = None
    point: Literal["conservative", "balanced", "aggressive"] | None = None


def _neutral(schema: dict[str, Any]) -> None:
    """Enter what is not supported, with the values that are taken all the same."""
    for name, values in _NEUTRAL.items():
        schema["properties"].setdefault(name, {"enum": [None, *values], "description": "Not supported."})


class Generation(_Asked):
    """What both endpoints that generate take."""

    model_config = ConfigDict(json_schema_extra=_neutral)

    model: Word
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Word | Annotated[list[Word], Field(max_length=4)] | None = None
    n: Count | None = None
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    kv: Choosing | None = None

    @model_validator(mode="after")
    def _options_have_a_stream(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def most(self) -> int | None:
        """The most tokens to generate, where it says so."""
        return self.max_tokens

    @property
    def n_top(self) -> int | None:
        """With how many of the likeliest tokens log-probabilities are told, if they are."""
        return None


class CompletionRequest(Generation):
    """The body of ``/v1/completions``."""

    prompt: str | list[Whole] | list[str] | list[list[Whole]]
    max_tokens: Whole | None = None
    logprobs: Most | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _something_is_asked(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 goes with echo: true")
        return self

    @property
    def silent(self) -> bool:
        """Whether it asks about its prompt alone."""
        return self.max_tokens == 0

    @property
    def most(self) -> int | None:
        """The most tokens to generate, where it says so; one is drawn also where none is told."""
        return 1 if self.silent else self.max_tokens

    @property
    def n_top(self) -> int | None:
        """With how many of the likeliest tokens log-probabilities are told, if they are."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or more prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class Part(_Asked):
    """A part of a message; only text."""

    type: Literal["text"]
    text: str


class Message(_Asked):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: Any) -> Any:
        """Drop what an answer of ours has as null, and clients send back."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    @property
    def plain(self) -> dict[str, str]:
        """As a chat template takes it; a developer's message is a system's."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Generation):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Most | None = None

    @model_validator(mode="after")
    def _likeliest_of_something(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        return self

    @property
    def n_top(self) -> int | None:
        """With how many of the likeliest tokens log-probabilities are told, if they are."""
        return self.top_logprobs or 0 if self.logprobs else None

    @model_validator(mode="after")
    def _one_budget(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("give max_tokens or max_completion_tokens, not both")
        return self

    @property
    def most(self) -> int | None:
        """The most tokens to generate, where it says so."""
        return self.max_completion_tokens or self.max_tokens


class TokenizeRequest(_Asked):
    """The body of ``/tokenize``: a prompt as ``/v1/completions`` takes it, or a chat."""

    model: Word | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens goes with prompt: the chat template says what messages get")
        return self


class DetokenizeRequest(_Asked):
    """The body of ``/detokenize``."""

    model: Word | None = None
    tokens: list[Whole]


Body = TypeVar("Body", bound=BaseModel)


def read(kind: type[Body], raw: bytes) -> Body:
    """Read the body of a request.

    Raises
    ------
    Rejected
        It is no JSON object, has a field that is unknown, wrong, or not supported.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, numbers of 5,000 digits
        raise Rejected(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Rejected("the body is no JSON object", code="invalid_json")
    try:
        return kind.model_validate(_supported(kind, data))
    except ValidationError as error:
        raise _told(error) from None


def _told(error: ValidationError) -> Rejected:
    """Say what is wrong: of the mistakes of a union's members, the one that lies deepest."""
    mistake: Any = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    place, said = (
        ".".join(str(part) for part in mistake["loc"])[:200],
        mistake["msg"].removeprefix("Value error, "),
    )
    told = {
        "extra_forbidden": f"{place} is not known or not supported: leave it out",
        "missing": f"{place} is missing",
    }
    message = told.get(mistake["type"]) or (f"{place}: {said}" if place else said)
    return Rejected(message[:600], param=str(mistake["loc"][0])[:100] if place else None)


def _supported(kind: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without those that ask for nothing."""
    rest = {}
    for name, value in data.items():
        if name in kind.model_fields or name not in _NEUTRAL:
            rest[name] = value
        elif value is not None and not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
            raise Rejected(f"{name} is not supported by this server: leave it out", param=name)
    return rest


def _same(value: Any, neutral: Any) -> bool:
    """Tell whether two values are equal, and true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
