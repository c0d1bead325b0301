"""Models of responses, for the OpenAPI schema; ``responses`` makes these, tests hold the two together."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Reason = Literal["stop", "length"]


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The answer to a request that is not served."""

    error: ErrorDetail


class CachedTokens(BaseModel):
    """Prompt tokens that were in a cache: none."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of prompts and texts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class KvTokens(BaseModel):
    """Cache entries, means over layers and heads."""

    prompt: int
    kept: float
    peak: float


class States(BaseModel):
    """Tokens in each state of the guard."""

    normal: int
    alert: int
    safe: int


class Telemetry(BaseModel):
    """What compression and guard did to a text; null where nothing was watched."""

    compressor: str
    ratio: float
    kv_tokens: KvTokens
    action: str | None
    point: str | None
    states: States | None
    alarms: int | None
    restores: int
    rewinds: int
    rewinds_withheld: int
    preempted: int
    hazard_max: float | None
    saved: float


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason
    kvguard: Telemetry


class _Generated(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage
    kvguard: Telemetry | None = None


class Completion(_Generated):
    """The answer of ``/v1/completions``."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Likely(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class LikelyOfAll(Likely):
    """A token beside the likeliest in its place."""

    top_logprobs: list[Likely]


class ChatContentLogprobs(BaseModel):
    """Log-probabilities of a chat's tokens."""

    content: list[LikelyOfAll]
    refusal: None


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatContentLogprobs | None
    finish_reason: Reason
    kvguard: Telemetry


class ChatCompletion(_Generated):
    """The answer of ``/v1/chat/completions``."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(BaseModel):
    """The answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(BaseModel):
    """The answer of ``/detokenize``."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The answer of ``/tokenizer_info``."""

    tokenizer_class: str
    chat_template: str | None
    eos_token: str | None
    eos_token_ids: list[int]
    max_model_len: int


class Health(BaseModel):
    """The answer of ``/health``."""

    status: Literal["ok"]


class Version(BaseModel):
    """The answer of ``/version``."""

    version: str
