"""The guard's actions, on the shipped reference model; only the risks are scripted."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvguard.engine.batch import Batch
from kvguard.engine.budget import Budget
from kvguard.engine.loop import Generated, assemble, decode
from kvguard.engine.oracle import TIE, kvpress_generate
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition, build_press
from kvguard.engine.requests import Decoding, Row
from kvguard.guard.actions import NEVER, Action, Guarded, GuardedRun, GuardParams
from kvguard.guard.controller import ControllerParams, State
from kvguard.guard.watch import Watch
from kvguard.models.load import LoadedModel, load_model
from kvguard.models.spec import ModelSpec
from kvguard.sweep.settings import CompressorSpec
from kvguard.tasks import sample_prompts

NEW, RATIO = 48, 0.75
RATIOS = [RATIO] * 3
POINT = ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=2, j_deescalate=4)
PRESS = CompressorSpec(press="SnapKVPress", params={"window_size": 16})
CONDITION = Condition("snapkv", RATIO)
KEEP = GuardParams(resume=False)


class Scripted:
    """Gives row r the risk ``script[r][i]`` at the i-th token it draws, and 0 after the script's end."""

    span = 1  # tokens that a risk accuses

    def __init__(self, script: dict[int, Sequence[float]], batch: Batch) -> None:
        self.seen: list[tuple[str, int, float]] = []
        self._script, self._batch, self._drawn = script, batch, dict.fromkeys(range(8), 0)

    def open(self, seat: int, ratio: float, max_new_tokens: int) -> None:
        assert (ratio, max_new_tokens) == (RATIO, NEW)

    def _row(self, seat: int) -> int:
        return int(self._batch.row[self._batch.seat == seat][0])

    def update(
        self, signals: NDArray[np.float32], token_ids: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        risks = []
        for row in map(self._row, rows.tolist()):
            script, i = self._script.get(row, ()), self._drawn[row]
            risks.append(script[i] if i < len(script) else 0.0)
            self._drawn[row] += 1
        return np.array(risks, dtype=np.float32)

    def accused(self, row: int, risen: int) -> int:
        return max(0, risen + 1 - self.span)

    def rewind(self, row: int, n_tokens: int) -> None:
        self.seen.append(("rewind", self._row(row), n_tokens))

    def set_ratio(self, row: int, ratio: float) -> None:
        self.seen.append(("ratio", self._row(row), ratio))


class AnsweredAt:
    """Says that a row has complete answers of so many tokens."""

    def __init__(self, *ends: int) -> None:
        self._ends, self.asked = ends, list[int]()

    def ends(self, tokens: Sequence[int]) -> list[int]:
        self.asked.append(len(tokens))
        return [end for end in self._ends if end <= len(tokens)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("reference", ModelSpec(source="embedded:qwen2", task="arithmetic"), "cpu")


@pytest.fixture(scope="module")
def rows(loaded: LoadedModel) -> list[Row]:
    made = []
    for prompt in sample_prompts("arithmetic", 3, seed=5, n_shots=2)["prompt"]:
        ids = torch.tensor(loaded.encode(prompt))
        done = prefill(loaded.model, ids, {CONDITION: build_press(PRESS, RATIO)}, "sdpa")
        made.append(Row(ids, done.logits, done.kept[CONDITION]))
    return made


@pytest.fixture(scope="module")
def static(loaded: LoadedModel, rows: list[Row]) -> Generated:
    return decode(loaded.model, rows, Decoding(NEW, loaded.eos_ids), batch_size=3)


def guard(
    loaded: LoadedModel,
    rows: list[Row],
    script: dict[int, Sequence[float]],
    action: Action,
    params: GuardParams = KEEP,
    answers: AnsweredAt | None = None,
) -> tuple[list[Guarded], Scripted]:
    batch = assemble(loaded.model, rows, 3, Decoding(NEW, loaded.eos_ids, keep_cache=True))
    trigger = Scripted(script, batch)
    run = GuardedRun(batch, Watch(trigger, POINT), action, params, RATIOS, answers=answers)
    for _ in run.steps():
        pass
    return results(run), trigger


def results(run: GuardedRun) -> list[Guarded]:
    return [found for _, found in sorted(run.collect().items())]


def uncompressed(loaded: LoadedModel, row: Row, given: Sequence[int]) -> list[int]:
    ids = torch.cat([row.prompt_ids, torch.tensor(given, dtype=torch.long)])
    found = kvpress_generate(loaded.model, ids, None, NEW - len(given), loaded.eos_ids)
    hesitates = [t for t, gap in enumerate(found.gaps) if gap < TIE]
    return found.token_ids[: hesitates[0] if hesitates else None]


@pytest.mark.parametrize("action", list(Action))
def test_a_guard_that_never_fires_changes_no_token(
    loaded: LoadedModel, rows: list[Row], static: Generated, action: Action
) -> None:
    answers = AnsweredAt(1)
    got, trigger = guard(loaded, rows, {0: [0.9], 1: [0.5] * 9}, action, answers=answers)
    assert answers.asked == []
    for r, row in enumerate(got):
        assert row.token_ids.tolist() == static.token_ids[r, : static.lengths[r]].tolist()
        assert row.safe_at == NEVER
        assert row.events == ()
        held = rows[r].cache.n_kept + np.arange(len(row.token_ids))
        assert row.kv_tokens == pytest.approx(held)
        full = rows[r].n_prompt + np.arange(len(row.token_ids))
        assert row.kv_saved == pytest.approx((1 - held / full).mean())
    assert got[1].states[1] == State.ALERT
    assert trigger.seen == []


def test_a_row_in_safe_is_restored_and_goes_on_as_if_never_compressed(
    loaded: LoadedModel, rows: list[Row], static: Generated
) -> None:
    got, trigger = guard(loaded, rows, {1: [0] * 6 + [0.9] * 2}, Action.RESTORE)
    tokens = got[1].token_ids.tolist()
    assert [(e.t, e.what, e.kept) for e in got[1].events] == [(7, "restore", 8)]
    assert tokens[:8] == static.token_ids[1, :8].tolist()
    expected = uncompressed(loaded, rows[1], tokens[:8])
    assert tokens[8:][: len(expected)] == expected
    assert got[1].safe_at == 7
    assert got[1].kv_tokens[7] == pytest.approx(rows[1].cache.n_kept + 7)
    assert got[1].kv_tokens[8] == pytest.approx(rows[1].n_prompt + 8)
    assert trigger.seen == [("ratio", 1, 0.0)]
    for r in (0, 2):
        assert got[r].token_ids.tolist() == static.token_ids[r, : static.lengths[r]].tolist()


def test_a_rollback_throws_away_what_came_since_the_hazard_rose(
    loaded: LoadedModel, rows: list[Row], static: Generated
) -> None:
    got, trigger = guard(loaded, rows, {1: [0] * 5 + [0.4, 0.4, 0.9, 0.9]}, Action.ROLLBACK)
    assert [(e.t, e.what, e.kept) for e in got[1].events] == [(8, "rollback", 5)]
    assert ("rewind", 1, 5) in trigger.seen
    tokens = got[1].token_ids.tolist()
    assert tokens[:5] == static.token_ids[1, :5].tolist()
    expected = uncompressed(loaded, rows[1], tokens[:5])
    assert tokens[5:][: len(expected)] == expected
    assert got[1].n_rewound == 4
    assert got[1].n_steps == len(tokens) + 4


def test_a_restart_generates_everything_again_uncompressed(loaded: LoadedModel, rows: list[Row]) -> None:
    got, _ = guard(loaded, rows, {1: [0, 0.1, 0.2, 0.2, 0.9, 0.9]}, Action.RESTART)
    assert [(e.t, e.what, e.kept) for e in got[1].events] == [(5, "restart", 0)]
    expected = uncompressed(loaded, rows[1], [])
    assert got[1].token_ids.tolist()[: len(expected)] == expected


def test_a_trigger_that_accuses_a_window_has_the_whole_window_thrown_away(
    loaded: LoadedModel, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {1: [0] * 8 + [0.9] * 2}
    for span, kept in ((1, 8), (4, 5), (20, 0)):
        monkeypatch.setattr(Scripted, "span", span)
        assert guard(loaded, rows, script, Action.ROLLBACK)[0][1].events[0].kept == kept


@pytest.mark.parametrize(("ends", "kept"), [((6,), 6), ((4, 7), 4), ((9,), 8), ((40,), 8), ((), 8)])
def test_a_rollback_goes_back_to_the_first_answer_or_further(
    loaded: LoadedModel, rows: list[Row], static: Generated, ends: Sequence[int], kept: int
) -> None:
    answers = AnsweredAt(*ends)
    got, _ = guard(loaded, rows, {1: [0] * 8 + [0.9] * 2}, Action.ROLLBACK, answers=answers)
    assert [(e.t, e.what, e.kept) for e in got[1].events] == [(9, "rollback", kept)]
    assert answers.asked == [10]
    tokens = got[1].token_ids.tolist()
    assert tokens[:kept] == static.token_ids[1, :kept].tolist()
    expected = uncompressed(loaded, rows[1], tokens[:kept])
    assert tokens[kept:][: len(expected)] == expected


@pytest.mark.parametrize(("ends", "kept"), [((6,), 6), ((4, 7), 7), ((9, 10), 10)])
@pytest.mark.parametrize("params", [KEEP, GuardParams(max_rewinds=0)], ids=str)
def test_a_stopped_row_ends_at_its_last_answer_and_no_other_learns_of_it(
    loaded: LoadedModel,
    rows: list[Row],
    static: Generated,
    monkeypatch: pytest.MonkeyPatch,
    params: GuardParams,
    ends: Sequence[int],
    kept: int,
) -> None:
    monkeypatch.setattr("kvguard.engine.batch.full_cache", lambda *_: pytest.fail("a cache was restored"))
    got, trigger = guard(loaded, rows, {1: [0] * 8 + [0.9] * 2}, Action.STOP, params, AnsweredAt(*ends))
    row = got[1]
    assert [(e.t, e.what, e.kept) for e in row.events] == [(9, "stop", kept)]
    assert row.token_ids.tolist() == static.token_ids[1, :kept].tolist()
    assert {len(row.signals), len(row.hazard), len(row.states), len(row.kv_tokens)} == {kept}
    assert (row.stop_reason, row.n_steps, row.n_rewound, row.safe_at) == ("guard", 10, 10 - kept, 9)
    full = rows[1].n_prompt + np.arange(10)
    assert row.kv_saved == pytest.approx((1 - rows[1].cache.n_kept / full - np.arange(10) / full).mean())
    assert [what for what, *_ in trigger.seen] == ["rewind"] * (kept < 10)
    for r in (0, 2):
        assert got[r].token_ids.tolist() == static.token_ids[r, : static.lengths[r]].tolist()
        assert got[r].stop_reason == static.stop_reasons[r]


def test_a_row_without_an_answer_is_rolled_back_and_stopped_once_it_has_one(
    loaded: LoadedModel, rows: list[Row]
) -> None:
    script = {1: [0] * 8 + [0.9] * 2 + [0] * 6 + [0.9] * 2}
    alike = guard(loaded, rows, script, Action.ROLLBACK, answers=AnsweredAt())[0]
    none = guard(loaded, rows, script, Action.STOP, answers=AnsweredAt())[0]
    assert none[1].events == alike[1].events
    assert none[1].token_ids.tolist() == alike[1].token_ids.tolist()
    later = guard(loaded, rows, script, Action.STOP, answers=AnsweredAt(12))[0]
    assert [(e.t, e.what, e.kept) for e in later[1].events] == [(9, "rollback", 8), (15, "stop", 12)]
    assert later[1].token_ids.tolist() == none[1].token_ids.tolist()[:12]
    assert later[1].n_rewound == 2 + 4


def test_a_stopped_row_makes_place_for_one_that_waits(loaded: LoadedModel, rows: list[Row]) -> None:
    batch = assemble(loaded.model, rows, 1, Decoding(NEW, loaded.eos_ids))
    watch = Watch(Scripted(dict.fromkeys(range(3), [0.9] * 2), batch), POINT)
    run = GuardedRun(batch, watch, Action.STOP, KEEP, RATIOS, answers=AnsweredAt(1))  # type: ignore[arg-type]
    assert [step.row.tolist() for step in run.steps()] == [[2], [2], [1], [1], [0], [0]]
    assert [len(row.token_ids) for row in results(run)] == [1] * 3


def test_stop_needs_to_know_the_answers(loaded: LoadedModel, rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="pass answers"):
        guard(loaded, rows, {}, Action.STOP)


def test_a_row_whose_rewinds_are_used_up_is_restored_only(loaded: LoadedModel, rows: list[Row]) -> None:
    script = {1: [0, 0, 0.9, 0.9] * 3 + [0] * 5 + [0.9, 0.9]}
    params = GuardParams(max_rewinds=2, resume=True)
    got, _ = guard(loaded, rows, script, Action.ROLLBACK, params)
    what = [event.what for event in got[1].events]
    assert what.count("rollback") == 2
    assert what[2:4] == ["resume", "restore"]
    none, _ = guard(loaded, rows, script, Action.ROLLBACK, GuardParams(max_rewinds=0))
    assert none[1].events[0].what == "restore"


def test_a_calm_row_returns_to_compression_only_if_it_may(loaded: LoadedModel, rows: list[Row]) -> None:
    script = {1: [0] * 4 + [0.9] * 2}
    for resume in (True, False):
        got, trigger = guard(loaded, rows, script, Action.RESTORE, GuardParams(resume=resume))
        row, back = got[1], 5 + POINT.j_deescalate
        assert row.states[5:back].tolist() == [State.SAFE] * POINT.j_deescalate
        assert row.states[back] == State.NORMAL
        held = rows[1].cache.n_kept if resume else rows[1].n_prompt
        assert row.kv_tokens[back + 1] == pytest.approx(held + back + 1)
        assert [e.what for e in row.events] == ["restore"] + ["resume"] * resume
        assert (("ratio", 1, pytest.approx(RATIO)) in trigger.seen) == resume


def test_hold_stops_eviction_while_safe_lasts(loaded: LoadedModel, rows: list[Row]) -> None:
    script = {1: [0] * 6 + [0.9] * 12}
    press = build_press(CompressorSpec(press="StreamingLLMPress"), RATIO)
    batch = assemble(loaded.model, rows, 3, Decoding(NEW, loaded.eos_ids, keep_cache=True))
    with Budget(loaded.model, [press] * 3, 4) as budget:
        run = GuardedRun(
            batch, Watch(Scripted(script, batch), POINT), Action.HOLD, KEEP, RATIOS, budget=budget
        )
        for _ in run.steps():
            pass
    held = [row.kv_tokens for row in results(run)]
    assert (np.diff(held[0])[:30] < 0).any()  # the others are held to the budget
    in_safe = slice(8, 6 + 12)
    assert (np.diff(held[1][in_safe]) == 1).all()
    assert (np.diff(held[1][18 + POINT.j_deescalate :]) < 0).any()


def test_alert_protects_the_thinking_tokens_of_its_row_alone(
    loaded: LoadedModel, rows: list[Row], static: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    thinking = np.zeros(loaded.model.config.vocab_size, dtype=bool)
    thinking[static.token_ids[1, 3]] = True
    asked: dict[int, list[list[int] | None]] = {0: [], 1: [], 2: []}
    enforce = Budget.enforce

    def spied(self: Budget, batch: Batch, slots: NDArray[np.int64], protected: object) -> None:
        for slot, positions in zip(slots, protected, strict=True):  # type: ignore[call-overload]
            asked[int(batch.row[slot])].append(None if positions is None else positions.tolist())
        enforce(self, batch, slots, protected)  # type: ignore[arg-type]

    monkeypatch.setattr(Budget, "enforce", spied)
    press = build_press(CompressorSpec(press="StreamingLLMPress"), RATIO)
    batch = assemble(loaded.model, rows, 3, Decoding(NEW, loaded.eos_ids))
    watch = Watch(Scripted({1: [0.4] * 12}, batch), POINT)
    with Budget(loaded.model, [press] * 3, 4) as budget:
        run = GuardedRun(batch, watch, Action.HOLD, KEEP, RATIOS, budget=budget, thinking=thinking)
        for _ in run.steps():
            pass
    assert set(map(str, asked[0] + asked[2])) == {"None"}
    alert = asked[1][1 : 12 + POINT.j_deescalate - 1]  # from the second risky token to the last but one calm
    assert None not in alert
    fed = run.collect()[1].token_ids
    for t, positions in enumerate(alert, start=1):
        assert positions == [rows[1].n_prompt + i for i in range(t) if thinking[fed[i]]]
    assert asked[1][12 + POINT.j_deescalate :][0] is None


def test_the_steps_tell_what_the_results_hold(loaded: LoadedModel, rows: list[Row]) -> None:
    script = {1: [0] * 5 + [0.4, 0.9, 0.9], 2: [0.9] * 3}
    batch = assemble(loaded.model, rows, 2, Decoding(NEW, loaded.eos_ids, keep_cache=True))
    run = GuardedRun(batch, Watch(Scripted(script, batch), POINT), Action.ROLLBACK, KEEP, RATIOS)
    told: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in run.steps():
        for row, token in zip(step.row.tolist(), step.token.tolist(), strict=True):
            told[row].append(token)
            if row in step.events:
                del told[row][step.events[row].kept :]
    for row, found in enumerate(results(run)):
        assert told[row] == found.token_ids.tolist()


def test_a_row_of_invalid_logits_is_recorded_and_the_others_finish(
    loaded: LoadedModel, rows: list[Row], static: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Batch.feed

    def poisoned(batch: Batch) -> None:
        feed(batch)
        batch.logits[: batch.n][(batch.row[: batch.n] == 2) & (batch.t[: batch.n] == 5)] = float("nan")

    monkeypatch.setattr(Batch, "feed", poisoned)
    got, _ = guard(loaded, rows, {1: [0.9] * 3}, Action.RESTORE)
    assert got[2].stop_reason == "invalid"
    assert got[2].token_ids.tolist() == static.token_ids[2, :5].tolist()
    assert got[0].token_ids.tolist() == static.token_ids[0, : static.lengths[0]].tolist()
    assert got[1].events[0].what == "restore"
