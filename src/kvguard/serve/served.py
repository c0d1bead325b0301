"""The model that a server serves: what of a request becomes which asks, and tokens become text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from kvguard.engine.presses import NONE, Condition, shortest_prompt
from kvguard.engine.sampling import Sampler, greedy
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.guard.arguments import Arguments, Options
from kvguard.guard.certificate import Certificate, Certified, Use
from kvguard.guard.controller import ControllerParams
from kvguard.guard.features import thinking_mask
from kvguard.guard.settings import Action, GuardParams
from kvguard.guard.watch import HazardTrigger, Watch
from kvguard.models.decoding import text_of
from kvguard.models.encoding import Encoder
from kvguard.models.identity import weights_digest
from kvguard.serve.chance import samplers
from kvguard.serve.errors import Rejected
from kvguard.serve.limits import Limits
from kvguard.serve.protocol import Choosing, CompletionRequest, Generation, Message
from kvguard.serve.tickets import Ask, Guarding
from kvguard.serve.words import Words

if TYPE_CHECKING:
    from kvpress import BasePress

    from kvguard.guard.session import Guard
    from kvguard.models.load import LoadedModel

Build = Callable[[str, float], "BasePress"]
_DEFAULT_TOKENS = 256  # of a chat, where no guard says how many it was trained for
_COMPLETION = 16  # tokens, as OpenAI has it


@dataclass(frozen=True)
class Served:
    """A model with the compression and the guard that its server was started with.

    Attributes
    ----------
    condition
        What a request gets that chooses nothing.
    build
        Makes a fresh press of a compressor's name and a ratio; raises KvguardError.
    guard
        None: nothing is watched.
    window
        Tokens of a prompt and its text at most.
    point, points
        The name of the guard's operating point, and those that a request may choose.
    compressors
        Names that ``build`` knows, to be offered to those who may choose.
    policy
        What is not certified in it is rejected.
    """

    name: str
    loaded: LoadedModel
    condition: Condition
    build: Build
    guard: Guard | None
    action: Action
    limits: Limits
    window: int
    point: str = "balanced"
    points: Mapping[str, ControllerParams] = field(default_factory=dict)
    compressors: tuple[str, ...] = ()
    policy: Certificate | None = None

    @property
    def params(self) -> GuardParams:
        """How the guard acts."""
        return self.guard.params if self.guard is not None else GuardParams()

    def watch(self) -> Callable[[], Watch] | None:
        """Return what makes the watch of a new batch; None: nothing is watched."""
        guard = self.guard
        if guard is None:
            return None
        mask = thinking_mask(self.loaded.tokenizer, guard.card.thinking_words)
        return lambda: Watch(HazardTrigger(guard.hazard, mask), guard.point)

    def check(self) -> None:
        """Reject, before the server listens, a model that cannot be compressed, or not by its press.

        Raises
        ------
        KvguardError
            Naming the model or the press, or what the policy does not cover.
        """
        arguments: Arguments = {"press": self._press(self.condition)}
        Options.checked(arguments, 1).check_model(self.loaded)
        self._covered(self.condition, Guarding(self.action, self.point), 1, greedy)
        if self.guard is not None:
            self.guard.warn_of_doubts(self.loaded)
        else:
            self.loaded.warn_of_doubts()

    def check_model(self, name: str) -> None:
        """Reject another model's name.

        Raises
        ------
        Rejected
            With 404.
        """
        if name != self.name:
            message = f"the model {name[:200]!r} does not exist: this server serves {self.name!r}"
            raise Rejected(message, status=404, param="model", code="model_not_found")

    def encode(self, prompt: str | Sequence[int], param: str = "prompt") -> list[int]:
        """Return the token ids of a prompt as it is; control tokens that stand in a text are text."""
        if isinstance(prompt, str):
            return self._encoded(lambda: self._plain.encode(prompt))
        size = self._plain.vocabulary
        stray = next((token for token in prompt if token >= size), None)
        if stray is not None:
            raise Rejected(f"the model knows no token {stray}, only 0 to {size - 1}", param=param)
        return list(prompt)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a chat, through the model's template."""
        if not self.loaded.has_chat:
            raise Rejected(f"{self.name} has no chat template: use /v1/completions", param="messages")
        chat = {"messages": [message.plain for message in messages]}
        return self._encoded(lambda: self.loaded.encode(chat), "messages")

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the token ids of a text; one that is a control token and nothing else is that token.

        Parameters
        ----------
        special
            With what the tokenizer puts around it.
        """
        for token, added in self.loaded.tokenizer.added_tokens_decoder.items():
            if added.special and text == str(added):
                return [token]
        return self._encoded(lambda: self._plain.encode(text, special))

    def _encoded(self, encode: Callable[[], list[int]], param: str = "prompt") -> list[int]:
        try:
            return encode()
        except KvguardError as error:
            raise Rejected(str(error), param=param) from None

    @cached_property
    def _plain(self) -> Encoder:
        plain = copy.copy(self.loaded.tokenizer)
        plain.chat_template = None
        size = int(self.loaded.model.config.get_text_config().vocab_size)
        return Encoder(self.name, plain, tuple(self.loaded.eos_ids), size)

    def decode(self, ids: Sequence[int], stops: StopStrings | None = None) -> str:
        """Return the text of generated tokens, up to a stop string; spaces are left as they are."""
        text = text_of(self.loaded.tokenizer, ids, tidy=False)
        return stops.cut(text) if stops is not None else text

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of any tokens, special ones too."""
        return text_of(self.loaded.tokenizer, self.encode(ids, "tokens"), special=True, tidy=False)

    def asks(self, request: Generation, prompts: Sequence[Sequence[int]]) -> list[Ask]:
        """Return what a request asks for: ``n`` texts of each prompt, those of a prompt side by side.

        A prompt that is too short for its press is not compressed, and its answer says so.

        Raises
        ------
        Rejected
            It goes beyond what the server or the model can do.
        """
        n = request.n or 1
        if n > self.limits.n:
            raise Rejected(f"n: {n} is more than {self.limits.n}", param="n")
        if not 0 < len(prompts) * n <= self.limits.queue:
            message = f"{len(prompts)} prompts, n {n}: ask for 1 to {self.limits.queue} texts at once"
            raise Rejected(message, param="prompt")
        chosen = self._chosen(request.kv)
        condition, guarding = self._condition(chosen), self._guarding(chosen)
        shortest = self._shortest(condition)
        asks = []
        for ids in prompts:
            if not ids:
                raise Rejected("a prompt has no tokens", param="prompt")
            fits = condition if len(ids) >= shortest else Condition(NONE, 0.0)  # too short to be compressed
            asks.append(
                Ask(
                    tuple(ids),
                    self._budget(request, len(ids)),
                    () if request.ignore_eos else tuple(self.loaded.eos_ids),
                    fits,
                    partial(self._press, fits),
                    guarding,
                    self._stops(request.stops),
                    bool(request.stream),
                    traced=request.stream_options is not None and request.stream_options.kvguard,
                    logprobs=request.n_top,
                )
            )
        if isinstance(request, CompletionRequest) and request.echo:
            asks = [self._echoing(ask, request, prompt) for ask, prompt in zip(asks, request.prompts)]
        if self.policy is not None and request.temperature is None:
            request = request.model_copy(update={"temperature": 0.0})  # what was certified is greedy
        drawn = samplers(request, len(asks) * n, self._plain.vocabulary)
        return [self._certified(asks[place // n], sampler) for place, sampler in enumerate(drawn)]

    def _certified(self, ask: Ask, sampler: Sampler) -> Ask:
        """Return an ask with its sampler, and with the certified setting that covers it."""
        try:
            covered = self._covered(ask.condition, ask.guarding, ask.max_new_tokens, sampler)
        except KvguardError as error:
            raise Rejected(str(error), param="kv") from None
        return replace(ask, sampler=sampler, covered=covered)

    def _covered(
        self, condition: Condition, guarding: Guarding, max_new_tokens: int, sampler: Sampler
    ) -> Certified | None:
        """Return the certified setting that covers a text, None without a policy or compression.

        Raises
        ------
        KvguardError
            None does.
        """
        if self.policy is None:
            return None
        guard = self.guard.identity if self.guard is not None and guarding.point is not None else None
        if guard is not None and guarding.point is not None:
            guard = guard.model_copy(update={"point": guarding.point})
        return self.policy.check(
            Use(
                weights=self._weights,
                press=self._press(condition),
                action=guarding.action,
                max_new_tokens=max_new_tokens,
                guard=guard,
                greedy=sampler is greedy,
            )
        )

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.loaded.model)

    def _echoing(self, ask: Ask, request: CompletionRequest, prompt: str | Sequence[int]) -> Ask:
        """Return an ask whose answer begins with its prompt."""
        text = prompt if isinstance(prompt, str) else self.decode(prompt)
        own = None if request.silent else ask.logprobs
        return replace(ask, echo=text, prompt_logprobs=ask.logprobs, logprobs=own, silent=request.silent)

    def _budget(self, request: Generation, n_prompt: int) -> int:
        """Return the most tokens of a text."""
        asked = request.most
        if asked is None and isinstance(request, CompletionRequest):
            asked = _COMPLETION
        left = self.window - n_prompt
        if left < (asked or 1):
            message = (
                f"a prompt of {n_prompt} tokens and {asked or 1} new ones exceed the {self.window} that this "
                "model takes: shorten it, or lower max_tokens"
            )
            raise Rejected(message, param="max_tokens", code="context_length_exceeded")
        return asked or min(self.usual_tokens, left)

    @property
    def usual_tokens(self) -> int:
        """How many tokens a chat may have that says nothing of it."""
        if self.policy is not None:
            return self.policy.max_new_tokens
        return self.guard.card.max_new_tokens if self.guard is not None else _DEFAULT_TOKENS

    def _chosen(self, kv: Choosing | None) -> dict[str, Any]:
        """Return what a request chooses of compression and guard, if it may."""
        chosen = {} if kv is None else kv.model_dump(exclude_none=True)
        if chosen and not self.limits.choosing:
            named = ", ".join(f"kv.{name}" for name in chosen)
            raise Rejected(f"{named}: this server was started without --allow-kv", param="kv")
        return chosen

    def _condition(self, chosen: Mapping[str, Any]) -> Condition:
        name = chosen.get("compressor", self.condition.compressor)
        own = name == self.condition.compressor
        ratio = float(chosen.get("ratio", self.condition.ratio if own else 0.0))
        if name == NONE and ratio > 0:
            raise Rejected("kv.ratio: nothing is compressed: give kv.compressor too", param="kv")
        if not own and name != NONE and "ratio" not in chosen:
            raise Rejected("kv.compressor: give kv.ratio with it", param="kv")
        return Condition(name, ratio)

    def _guarding(self, chosen: Mapping[str, Any]) -> Guarding:
        guard = self.guard if chosen.get("guard", True) else None
        if guard is None:
            if chosen.get("guard") or chosen.get("action", "none") != "none" or "point" in chosen:
                started = "this server was started without --guard"
                why = started if self.guard is None else "kv.guard is false"
                raise Rejected(f"kv: nothing can act, since {why}", param="kv")
            return Guarding()
        action, name = Action(chosen.get("action", self.action)), chosen.get("point", self.point)
        point = self.points.get(name) if "point" in chosen else guard.point
        if point is None:
            known = ", ".join(self.points) or "none to choose"
            raise Rejected(f"kv.point: this server's guard has no point {name!r}: {known}", param="kv")
        asked = self.limits.hold_back
        held = point.k_escalate if asked is None else asked
        return Guarding(action, name, point, held if action.rewinds else 0)

    def _press(self, condition: Condition) -> BasePress | None:
        return None if condition.compressor == NONE else self.build(condition.compressor, condition.ratio)

    def _shortest(self, condition: Condition) -> int:
        """Return the fewest tokens of a prompt that can be compressed."""
        try:
            press = self._press(condition)
        except KvguardError as error:
            raise Rejected(str(error), param="kv") from None
        return shortest_prompt(press) if press is not None else 1

    def _stops(self, strings: tuple[str, ...]) -> StopStrings | None:
        return self._made_stops(strings) if strings else None

    @cached_property
    def words(self) -> Words:
        """What single tokens stand for."""
        return Words(self.loaded.tokenizer)

    @cached_property
    def _made_stops(self) -> Callable[[tuple[str, ...]], StopStrings]:
        return lru_cache(64)(partial(StopStrings, self.loaded.tokenizer))
