"""The library's front door: generate with any causal LM while a guard watches, and acts, token by token.

    guard = Guard.load("models/reference")
    out = guard.generate(model, tokenizer, prompts, press=SnapKVPress(0.75), max_new_tokens=256)
    out[0].text, out[0].states, out[0].hazard, out[0].actions, out[0].kv_tokens

A mistake in the arguments is a KvguardError before anything runs. What is wrong with one prompt is recorded
in that prompt's ``error``, and the others finish.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Unpack
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from numpy.typing import NDArray

from kvguard.engine.memory import enough_memory, within_memory
from kvguard.engine.sampling import greedy
from kvguard.errors import KvguardError
from kvguard.guard.actions import Event, Guarded, GuardedStep, GuardParams
from kvguard.guard.arguments import Arguments, Options
from kvguard.guard.bundle import Card, digest_of, load
from kvguard.guard.certificate import Certificate, Certified, GuardOf, Use
from kvguard.guard.controller import ControllerParams, State
from kvguard.guard.drift import Drift, score
from kvguard.guard.features import Bools, thinking_mask
from kvguard.guard.hazard_model import HazardModel
from kvguard.guard.job import Job
from kvguard.guard.settings import Action
from kvguard.guard.text import Unfolding, told
from kvguard.models.identity import weights_digest
from kvguard.models.load import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

Prompt = str | Sequence[int]
GUARD, INVALID, REJECTED = "guard", "invalid", "rejected"
_PLAIN = "What is new?"  # that any chat template and tokenizer can ask


@dataclass(frozen=True)
class Output:
    """What became of one prompt; arrays run over the tokens that it ended with. [T]

    Attributes
    ----------
    text, token_ids
        What was generated; the ids have the end-of-sequence token, or the tokens of a stop string, too. A
        text that the guard ended has all of the token that completes its answer, but for what a stop string
        may begin with.
    states
        The controller's after each token, see :class:`~kvguard.guard.controller.State`.
    hazard
        The probability that a catastrophe begins within the horizon, after each token.
    actions
        What the guard did, in order.
    kv_tokens
        Cache entries held when each token was drawn, a mean over layers and heads.
    stop_reason
        ``eos``, ``stop`` (a stop string), ``length`` or ``guard`` (its action ``stop``); with an ``error``
        also ``invalid`` (logits that are NaN) and ``rejected`` (the prompt was never asked).
    error
        One line: what was wrong with this prompt.
    score
        What the guard thought of it: 1 if it alarmed, else the highest hazard.
    kv_saved
        The mean of 1 - held / full over all steps, those of rewound tokens included.
    n_steps, n_rewound
        Tokens drawn, and those of them thrown away.
    """

    text: str
    token_ids: NDArray[np.int32]
    states: NDArray[np.uint8]
    hazard: NDArray[np.float32]
    actions: tuple[Event, ...]
    kv_tokens: NDArray[np.float32]
    stop_reason: str
    error: str | None = None
    kv_saved: float = 0.0
    n_steps: int = 0
    n_rewound: int = 0
    score: float = 0.0


@dataclass(frozen=True)
class Piece:
    """One token as it is drawn, and what the guard did after it.

    Attributes
    ----------
    prompt
        Its place among the prompts.
    t, token_id, text
        The token's index, its id, and what it adds to the text. None for an id: the prompt ended without a
        token, see ``error``.
    hazard, state
        After this token.
    event
        What the guard did then. Tokens from index ``event.kept`` on are void, mostly this one too: they are
        drawn anew, but for ``stop``, which ends the text there.
    stop_reason, error
        Of a prompt's last piece, see :class:`Output`; None before.
    """

    prompt: int
    t: int
    token_id: int | None
    text: str
    hazard: float
    state: State
    event: Event | None = None
    stop_reason: str | None = None
    error: str | None = None


class Guard:
    """A hazard model and an operating point, ready to watch any causal LM that kvpress supports.

    Parameters
    ----------
    hazard, point, card
        See :func:`kvguard.guard.bundle.load`.
    params
        How it acts.
    policy
        What it may be used for, else it is rejected; see :mod:`kvguard.guard.certificate`.
    identity
        What a certificate calls this guard.

    Attributes
    ----------
    drifts
        Of each certified setting that it was used with, whether its texts still look like the calibration's;
        by the setting's name. See :mod:`kvguard.guard.drift`.

    Raises
    ------
    KvguardError
        ``params`` are something else.
    """

    def __init__(
        self,
        hazard: HazardModel,
        point: ControllerParams,
        card: Card,
        params: GuardParams | None = None,
        *,
        policy: Certificate | None = None,
        identity: GuardOf | None = None,
    ) -> None:
        if not isinstance(params, GuardParams | None):
            raise KvguardError(f"params: {params!r} will not do: pass GuardParams(max_rewinds=2), say")
        self.hazard, self.point, self.card = hazard, point, card
        self.params = params or GuardParams()
        self.policy, self.identity = policy, identity
        self.drifts: dict[str, Drift] = {}
        self._masks: WeakKeyDictionary[PreTrainedTokenizerBase, Bools] = WeakKeyDictionary()
        self._met: WeakSet[PreTrainedModel] = WeakSet()

    @classmethod
    def load(
        cls,
        folder: Path | str,
        point: str = "balanced",
        params: GuardParams | None = None,
        policy: Path | str | None = None,
    ) -> Guard:
        """Load a guard from a folder that the ``export`` stage wrote.

        Parameters
        ----------
        point
            The operating point: conservative, balanced or aggressive.
        policy
            A certificate that ``kvguard recommend`` wrote: what it does not cover is rejected.

        Raises
        ------
        KvguardError
            The folder holds no whole guard, or no such point; ``params`` are no GuardParams; or the policy is
            no certificate.
        """
        loaded = load(Path(folder), point)
        certificate = Certificate.load(policy) if policy is not None else None
        guard = cls(*loaded, params, policy=certificate)
        guard.identity = GuardOf(digest=digest_of(Path(folder)), point=point, **guard.params.model_dump())
        return guard

    def generate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        *,
        on_finish: Callable[[int], None] | None = None,
        **how: Unpack[Arguments],
    ) -> list[Output]:
        """Generate from every prompt under guard, many at a time.

        Parameters
        ----------
        prompts
            User messages, asked through the tokenizer's chat template if it has one; or token ids, taken as
            they are.
        press
            A kvpress press that compresses each prompt's cache; None compresses nothing.
        max_new_tokens
            By default as many as the hazard model was trained with.
        action
            What a row does in SAFE: ``hold``, ``restore``, ``rollback``, ``restart`` or ``stop``; with
            ``none`` it is only watched.
        answered
            Takes a text and returns at which characters its complete answers end, [] if it has none. With it
            ``rollback`` keeps the first answer; ``stop`` ends the text at the last one.
        compression_interval
            Hold the whole cache to the press's ratio while decoding too, evicting every so many tokens.
        stop
            Texts that end a generation where one of them is complete; they are no part of its text. A model
            without a chat template needs them: it knows no end of its turn.
        temperature, top_p, seed
            0 is greedy. A sampled row depends on the seed and its place, not on the others; a rewound row
            draws anew.
        batch_size
            Rows decoded together; by default as many as memory takes.
        on_finish
            Called with the place of every prompt that is done: for a progress bar, say.

        Raises
        ------
        KvguardError
            An argument is wrong, or memory runs out.
        """
        if not callable(on_finish) and on_finish is not None:
            raise KvguardError(f"on_finish: {on_finish!r} cannot be called: pass a function of one number")
        job = self._job(model, tokenizer, prompts, how)
        reported: set[int] = set()

        def report(number: int) -> None:
            if on_finish is not None and number not in reported:  # else it was asked again in a smaller batch
                reported.add(number)
                on_finish(number)

        outputs = within_memory(
            job.loaded.name, model.device, job.batch_size(), lambda size: _outputs(job, size, report)
        )
        self._look_for_drift(job.covered, outputs)
        return outputs

    def stream(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        **how: Unpack[Arguments],
    ) -> Iterator[Piece]:
        """Yield the tokens of :meth:`generate` as they are drawn, those too that are rewound later.

        The same arguments give the same tokens. Wrong ones raise here, not at the first piece. Until the
        iterator is used up or closed the model is its own: do not run it otherwise in between.
        """
        job = self._job(model, tokenizer, prompts, how)
        return _pieces(job, partial(self._look_for_drift, job.covered))

    def _job(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        how: Arguments,
    ) -> Job:
        options = Options.checked(how, self.card.max_new_tokens)
        if not hasattr(model, "config") or not hasattr(tokenizer, "batch_decode"):
            raise KvguardError(
                f"model, tokenizer: a {type(model).__name__} and a {type(tokenizer).__name__} are none: pass "
                "what AutoModelForCausalLM and AutoTokenizer load"
            )
        loaded = LoadedModel(model.config.name_or_path or type(model).__name__, model, tokenizer, "")
        options.check_model(loaded)
        self.warn_of_doubts(loaded)
        if tokenizer not in self._masks:
            self._masks[tokenizer] = thinking_mask(tokenizer, self.card.thinking_words)
        encoded, unasked = _encoded(prompts, loaded)
        mask = self._masks[tokenizer]
        covered = self._covered(options, loaded)
        return Job(loaded, encoded, unasked, options, self.hazard, self.point, self.params, mask, covered)

    def _covered(self, options: Options, loaded: LoadedModel) -> Certified | None:
        """Return the certified setting that covers a call, if there is a policy; reject what none covers."""
        if self.policy is None:
            return None
        return self.policy.check(
            Use(
                weights=weights_digest(loaded.model),
                press=options.press,
                action=options.action,
                max_new_tokens=options.max_new_tokens,
                guard=self.identity,
                interval=options.interval,
                greedy=options.sampler is greedy,
            )
        )

    def _look_for_drift(self, covered: Certified | None, outputs: Sequence[Output]) -> None:
        """Show the texts of a call, in the order of its prompts, to the drift of their setting."""
        if covered is None or not covered.scores:
            return
        drift = self.drifts.setdefault(str(covered), Drift(covered.scores))
        for output in outputs:
            if output.stop_reason not in (REJECTED, INVALID) and drift.observe(output.score):
                warn_of_drift(drift, covered)

    def warn_of_doubts(self, loaded: LoadedModel) -> None:
        """Warn, once, of a model whose end tokens are doubtful, or that the hazard is not from."""
        if loaded.model in self._met:
            return
        loaded.warn_of_doubts()
        if weights_digest(loaded.model) != self.card.weights:
            _log.warning(
                "%s is not the model that this guard was trained on, which is %s (%s): its forecasts are "
                "carried over, and neither thresholds nor rates are known to hold; see docs/guard.md",
                loaded.name,
                self.card.model,
                self.card.source,
            )
        self._met.add(loaded.model)


def warn_of_drift(drift: Drift, covered: Certified) -> None:
    """Say in the log that texts no longer look like those that a certificate was made of."""
    _log.warning(
        "%s: after %d texts they do not look like those that certified it: its promise does not hold for "
        "them; certify anew with prompts of now (`kvguard recommend`)",
        covered,
        drift.n,
    )


def _encoded(prompts: Iterable[Prompt], loaded: LoadedModel) -> tuple[list[list[int]], dict[int, str]]:
    """Return the token ids of every prompt, and why those that have none cannot be encoded.

    Raises
    ------
    KvguardError
        Something is neither a text nor token ids, or the model's chat template asks nothing.
    """
    if isinstance(prompts, str):
        raise KvguardError("prompts: a text stands where a list of them is wanted: pass [prompt]")
    encoded: list[list[int]] = []
    unasked: dict[int, str] = {}
    try:
        for number, prompt in enumerate(prompts):
            try:
                encoded.append(_ids(prompt, loaded))
            except KvguardError as error:
                if not unasked:
                    loaded.encode(_PLAIN)  # else it is not the prompt: say so before anything runs
                encoded.append([])
                unasked[number] = str(error)
    except TypeError as error:
        raise KvguardError(f"prompts: {error}: pass a list of texts, or of lists of token ids") from None
    return encoded, unasked


def _ids(prompt: Prompt, loaded: LoadedModel) -> list[int]:
    if isinstance(prompt, str):
        return loaded.encode(prompt)
    if isinstance(prompt, bytes | bytearray | Mapping):
        raise TypeError(f"a {type(prompt).__name__} is neither a text nor token ids")
    return [index(token) for token in prompt]


def _outputs(job: Job, batch_size: int, report: Callable[[int], None]) -> list[Output]:
    outputs: dict[int, Output] = {}
    for turn in job.turns(batch_size):
        outputs |= {number: _rejection(reason) for number, reason in turn.rejected.items()}
        outputs |= {number: _output(found, job) for number, found in turn.done.items()}
        for number in (*turn.rejected, *turn.done):
            report(number)
    return [outputs[number] for number in sorted(outputs)]


def _pieces(job: Job, look: Callable[[Sequence[Output]], None]) -> Iterator[Piece]:
    texts: dict[int, Unfolding] = {}
    done: dict[int, Output] = {}
    eos_ids = job.loaded.eos_ids
    with enough_memory(job.loaded.name):
        for turn in job.turns(job.batch_size()):
            if turn.step is not None:
                for slot, number in enumerate(turn.numbers):
                    text = texts.setdefault(number, Unfolding(job.loaded.tokenizer, job.stops))
                    yield _piece(turn.step, slot, number, text, eos_ids)
                for slot in np.flatnonzero(turn.step.left).tolist():
                    del texts[turn.numbers[slot]]
            done |= {number: _output(found, job) for number, found in turn.done.items()}
            for number, reason in turn.rejected.items():
                yield Piece(number, 0, None, "", np.nan, State.NORMAL, stop_reason=REJECTED, error=reason)
    look([done[number] for number in sorted(done)])


def _piece(step: GuardedStep, slot: int, number: int, text: Unfolding, eos_ids: Sequence[int]) -> Piece:
    row, t, token = int(step.row[slot]), int(step.t[slot]), int(step.token[slot])
    hazard, state = float(step.hazard[slot]), State(step.state[slot])
    if not step.valid[slot]:
        return Piece(number, t, None, text.rest(), hazard, state, None, INVALID, _invalid(t))
    event, left = step.events.get(row), bool(step.left[slot])
    added = text.add(token)
    if event is not None and event.what == Action.STOP:
        return Piece(number, t, token, added, hazard, state, event, GUARD)
    added += text.rest() if left else ""
    stopped = text.stopped
    if event is not None:
        text.rewind(event.kept)
    stop = ("eos" if token in eos_ids else "stop" if stopped else "length") if left else None
    return Piece(number, t, token, added, hazard, state, event, stop)


def _output(found: Guarded, job: Job) -> Output:
    return Output(
        text=_text(found, job),
        token_ids=found.token_ids,
        states=found.states,
        hazard=found.hazard,
        actions=found.events,
        kv_tokens=found.kv_tokens,
        stop_reason=found.stop_reason,
        error=_invalid(len(found.token_ids)) if found.stop_reason == INVALID else None,
        kv_saved=found.kv_saved,
        n_steps=found.n_steps,
        n_rewound=found.n_rewound,
        score=score(found.hazard, found.safe_at),
    )


def _text(found: Guarded, job: Job) -> str:
    ids = found.token_ids.tolist()
    if found.stop_reason == GUARD:  # as it was told: the tokens that came after it cannot be taken back
        return told(job.loaded.tokenizer, ids, job.stops)
    text = job.loaded.decode(ids)
    return job.stops.cut(text) if job.stops is not None else text


def _rejection(reason: str) -> Output:
    ids, states, numbers = np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.float32)
    return Output("", ids, states, numbers, (), numbers, REJECTED, reason)


def _invalid(n_tokens: int) -> str:
    return f"the model's logits after {n_tokens} tokens are NaN: try another dtype, float32 say"
