"""Answers of a block: each prompt is read once, whole, and goes on under all of its arms together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvguard.engine.batch import Batch
from kvguard.engine.loop import finished
from kvguard.engine.prefill import full_pass, prefill
from kvguard.engine.presses import Condition, PressSpec, attention_for
from kvguard.engine.requests import Decoding, Request, Row
from kvguard.engine.stops import StopStrings
from kvguard.errors import KvguardError
from kvguard.guard.actions import Action, Guarded, GuardedRun, GuardParams
from kvguard.guard.controller import ControllerParams
from kvguard.guard.features import Bools
from kvguard.guard.hazard_model import HazardModel
from kvguard.guard.watch import HazardTrigger, Watch
from kvguard.models.load import LoadedModel
from kvguard.studies.instructions.arms import BASELINE, RESTORE, ROLLBACK, TEXT_REMOVAL, Arm
from kvguard.studies.instructions.eviction import Unfit, keep_ends, press_for, protected_by
from kvguard.studies.instructions.places import Encoded

if TYPE_CHECKING:
    from kvpress import BasePress

_ACTIONS = {RESTORE: Action.RESTORE, ROLLBACK: Action.ROLLBACK}


@dataclass(frozen=True)
class Watched:
    """The guard that forecasts failures in all arms, and acts in those that say so."""

    hazard: HazardModel
    point: ControllerParams
    params: GuardParams
    mask: Bools


@dataclass(frozen=True)
class How:
    """How answers are generated.

    Parameters
    ----------
    specs : mapping
        The press of every compressor that arms name.
    stops : StopStrings, optional
        What ends a text besides the end tokens.
    guard : Watched, optional
    """

    loaded: LoadedModel
    specs: Mapping[str, PressSpec]
    max_new_tokens: int
    batch_size: int
    seed: int
    stops: StopStrings | None = None
    guard: Watched | None = None

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer, without its stop string."""
        text = self.loaded.decode(list(token_ids))
        return self.stops.cut(text) if self.stops is not None else text


@dataclass(frozen=True)
class Asked:
    """An arm of an example, ready to be decoded.

    Parameters
    ----------
    row : Row
    ratio : float
        What the press was asked to remove.
    facts : mapping
        What is known of it before it is decoded, for its result.
    """

    arm: Arm
    key: str
    row: Row
    ratio: float
    facts: Mapping[str, Any] = field(default_factory=dict)


def prefilled(how: How, encoded: Encoded, arms: Sequence[Arm]) -> Iterator[Asked | tuple[Arm, str]]:
    """Read an example's prompt, and yield its arms; of one that it does not fit, why not.

    All arms with a cache share the pass (one more for each attention implementation), which sees every token
    of the prompt; under text removal a pass sees those alone that StreamingLLM would have kept.
    """
    model = how.loaded.model
    ids = torch.tensor(encoded.ids, dtype=torch.long, device=model.device)
    presses: dict[Arm, BasePress | None] = {}
    for arm in arms:
        if arm.press == TEXT_REMOVAL:
            continue
        try:
            presses[arm] = (
                None if arm.press == BASELINE else press_for(model, arm, encoded, how.specs, how.seed)
            )
        except Unfit as error:
            yield arm, str(error)
    by_attention: dict[str, dict[Arm, BasePress | None]] = {}
    for arm, press in presses.items():
        by_attention.setdefault(attention_for(press), {})[arm] = press
    for implementation, together in by_attention.items():
        yield from _read(how, encoded, ids, together, implementation)
    for arm in arms:
        if arm.press == TEXT_REMOVAL:
            yield _asked(encoded, arm, _without_text(how, ids, arm))


def _read(
    how: How,
    encoded: Encoded,
    ids: Tensor,
    presses: Mapping[Arm, BasePress | None],
    implementation: str,
) -> Iterator[Asked | tuple[Arm, str]]:
    """Read a prompt in one pass for all of these arms; where a press rejects it, arm by arm."""
    named = {arm: Condition(str(arm), arm.ratio_of(len(ids))) for arm in presses}
    try:
        done = prefill(
            how.loaded.model, ids, {named[arm]: press for arm, press in presses.items()}, implementation
        )
    except KvguardError as error:
        if Arm(BASELINE) in presses and len(presses) == 1:
            raise
        for arm, press in presses.items():
            if len(presses) == 1:
                yield arm, str(error)
            else:
                yield from _read(how, encoded, ids, {arm: press}, implementation)
        return
    for arm in presses:
        yield _asked(encoded, arm, Row(ids, done.logits, done.kept[named[arm]]))


def _asked(encoded: Encoded, arm: Arm, row: Row) -> Asked:
    facts = {
        "n_prompt": len(encoded.ids),
        "n_seen": row.n_prompt,
        "n_kept": row.cache.n_kept,
        "n_protected": protected_by(arm, encoded),
    }
    return Asked(arm, encoded.example.key, row, arm.ratio_of(len(encoded.ids)), facts)


def _without_text(how: How, ids: Tensor, arm: Arm) -> Row:
    """Return the prompt without the text of the tokens that StreamingLLM would evict, read anew."""
    first, last = keep_ends(arm, len(ids)).ends(len(ids))
    left = torch.cat([ids[:first], ids[len(ids) - last :]])
    return Row(left, *full_pass(how.loaded.model, left))


class _ByArm(GuardedRun):
    """A guarded run in which each row has an action of its own."""

    def __init__(self, actions: Sequence[Action], *arguments: Any) -> None:
        self._actions, self._of_seat = actions, dict[int, Action]()
        super().__init__(*arguments)

    def open(self, seat: int, row: int, request: Request) -> None:
        """Begin a row."""
        self._of_seat[seat] = self._actions[row]
        super().open(seat, row, request)

    def action_of(self, seat: int) -> Action:
        """Return what the row in a seat does when it reaches SAFE."""
        return self._of_seat[seat]


def decoded(how: How, asked: Sequence[Asked]) -> Iterator[tuple[Asked, dict[str, Any]]]:
    """Decode rows together, and yield each with what it generated as soon as it ends."""
    model = how.loaded.model
    decoding = Decoding(how.max_new_tokens, how.loaded.eos_ids, stops=how.stops)
    batch = Batch(model, min(how.batch_size, len(asked)))
    ratios = [one.ratio if one.arm.evicts else 0.0 for one in asked]
    run = None
    if how.guard is not None:
        watch = Watch(HazardTrigger(how.guard.hazard, how.guard.mask), how.guard.point)
        actions = [_ACTIONS.get(one.arm.treatment, Action.NONE) for one in asked]
        run = _ByArm(actions, batch, watch, Action.NONE, how.guard.params, ratios)
    for one in asked:
        batch.add(decoding.request(one.row))
    if run is None:
        for done in finished(batch):
            yield asked[done.row], _answer(done.token_ids, done.stop_reason)
        return
    for _ in chain(run.steps(), [None]):
        for row, guarded in run.collect().items():
            yield asked[row], {**_answer(guarded.token_ids, guarded.stop_reason), **_watched(guarded)}


def _answer(token_ids: Any, stop_reason: str) -> dict[str, Any]:
    return {"token_ids": token_ids.tolist(), "stop_reason": stop_reason}


def _watched(done: Guarded) -> dict[str, Any]:
    """Return what the guard saw and did: its highest hazard, and its actions."""
    known = done.hazard[done.hazard == done.hazard]
    return {
        "hazard": float(known.max()) if len(known) else None,
        "hazard_mean": float(known.mean()) if len(known) else None,
        "actions": [event.what for event in done.events],
        "kv_saved": done.kv_saved,
    }
