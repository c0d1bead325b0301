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
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Unpack
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from kvguard.engine.memory import enough_memory, within_memory
from kvguard.errors import KvguardError
from kvguard.guard.actions import GuardParams
from kvguard.guard.arguments import Arguments, Options
from kvguard.guard.bundle import Card, digest_of, load
from kvguard.guard.certificate import Certificate, GuardOf
from kvguard.guard.controller import ControllerParams, State
from kvguard.guard.features import Bools, thinking_mask
from kvguard.guard.hazard_model import HazardModel
from kvguard.guard.job import Job
from kvguard.guard.output import INVALID, REJECTED, Output, Piece, output_of, piece_of, rejection
from kvguard.guard.policy import Policy
from kvguard.guard.text import Unfolding
from kvguard.models.identity import weights_digest
from kvguard.models.load import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

Prompt = str | Sequence[int]
_PLAIN = "What is new?"  # that any chat template and tokenizer can ask


class Guard:
    """A hazard model and an operating point, ready to watch any causal LM that kvpress supports.

    Parameters
    ----------
    hazard, point, card
        See :func:`kvguard.guard.bundle.load`.
    params
        How it acts.

    Attributes
    ----------
    identity
        What a certificate calls a guard that was loaded from a folder.
    policy
        What it may be used for: the rest is rejected; None: for anything.

    Raises
    ------
    KvguardError
        ``params`` are something else.
    """

    def __init__(
        self, hazard: HazardModel, point: ControllerParams, card: Card, params: GuardParams | None = None
    ) -> None:
        if not isinstance(params, GuardParams | None):
            raise KvguardError(f"params: {params!r} will not do: pass GuardParams(max_rewinds=2), say")
        self.hazard, self.point, self.card = hazard, point, card
        self.params = params or GuardParams()
        self.identity: GuardOf | None = None
        self.policy: Policy | None = None
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
        guard = cls(*load(Path(folder), point), params)
        guard.identity = GuardOf(digest=digest_of(Path(folder)), point=point, **guard.params.model_dump())
        if policy is not None:
            guard.policy = Policy(Certificate.load(policy), guard.identity)
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
        self._look(job, outputs)
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
        return _pieces(job, partial(self._look, job))

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
        covered = self.policy.covering(options, loaded) if self.policy is not None else None
        return Job(loaded, encoded, unasked, options, self.hazard, self.point, self.params, mask, covered)

    def _look(self, job: Job, outputs: Sequence[Output]) -> None:
        """Show texts, in the order of their prompts, to those who look for drift."""
        if self.policy is not None:
            found = (output.score for output in outputs if output.stop_reason not in (REJECTED, INVALID))
            self.policy.look(job.covered, found)

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
        outputs |= {number: rejection(reason) for number, reason in turn.rejected.items()}
        outputs |= {number: output_of(found, job) for number, found in turn.done.items()}
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
                    yield piece_of(turn.step, slot, number, text, eos_ids)
                for slot in np.flatnonzero(turn.step.left).tolist():
                    del texts[turn.numbers[slot]]
            done |= {number: output_of(found, job) for number, found in turn.done.items()}
            for number, reason in turn.rejected.items():
                yield Piece(number, 0, None, "", np.nan, State.NORMAL, stop_reason=REJECTED, error=reason)
    look([done[number] for number in sorted(done)])
