"""A policy branched from its trunk against the same policy run from the start, row by row."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from live_setup import live_of

from kvguard.engine.batch import Batch
from kvguard.engine.columns import LOGPROBS, SIGNALS
from kvguard.engine.loop import assemble
from kvguard.engine.oracle import TIE
from kvguard.engine.presses import Condition, Presses
from kvguard.engine.requests import Decoding, Row
from kvguard.guard.actions import Action, Guarded, GuardedRun
from kvguard.guard.branch import BranchedRun, replay, stop_at_answer
from kvguard.guard.bundle import load_operating_point
from kvguard.guard.features import thinking_mask
from kvguard.guard.hazard_model import HazardModel
from kvguard.guard.settings import GuardParams
from kvguard.guard.watch import Watch
from kvguard.models.load import load_model
from kvguard.models.spec import ModelSpec
from kvguard.store.parts import keep_made
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.live.block import make_trigger
from kvguard.studies.catastrophes.live.branches import cut_branches
from kvguard.studies.catastrophes.live.plan import POLICIES, Live, cut_by_policy
from kvguard.studies.catastrophes.live.stage import run_live
from kvguard.sweep.make import prefill_rows
from kvguard.sweep.plan import compile_sweep
from kvguard.tasks import make_task

MODELS = Path(__file__).parents[4] / "models"
ACTING = ("restore", "rollback", "restart", "entropy", "clock", "loop")
SETTINGS = (GuardParams(), GuardParams(resume=True), GuardParams(max_rewinds=0))
SIZE = 4  # fewer than rows: rows wait, and seats change hands


class Seventh:
    """Says that every seventh token is the last of a complete answer, from the n-th on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def ends(self, tokens: Sequence[int]) -> list[int]:
        return [n for n in range(self.first, len(tokens) + 1, 7) if tokens[n - 1] % 3]


class Runs:
    """The rows of a live run's first condition, under any policy, both ways."""

    def __init__(self, live: Live, max_new_tokens: int) -> None:
        self.live, self.loaded = live, load_model(live.name, live.spec, "cpu")
        conditions = live.sweep.conditions[1:]
        ids = [np.array(self.loaded.encode(prompt)) for prompt in live.sweep.prompts["prompt"]]
        prefilled = prefill_rows(self.loaded, ids, Presses(conditions, live.sweep.compressors), conditions)
        self.rows: list[Row] = list(prefilled.values())
        self.ratios = [condition.ratio for _, condition in prefilled]
        self.how = Decoding(max_new_tokens, self.loaded.eos_ids, keep_cache=True)
        self.thinking = thinking_mask(self.loaded.tokenizer, live.featurize.thinking_words)

    def watch(self, policy: str) -> Watch:
        kind = POLICIES[policy].trigger
        trigger = make_trigger(self.live, kind, self.thinking, self.loaded.model.config)
        return Watch(trigger, self.live.triggers[kind])

    def separate(
        self, policy: str, params: GuardParams, act: Action | None = None, answers: Seventh | None = None
    ) -> list[Guarded]:
        batch = assemble(self.loaded.model, self.rows, SIZE, self.how)
        action = act or POLICIES[policy].action
        run = GuardedRun(batch, self.watch(policy), action, params, self.ratios, answers=answers)
        for _ in run.steps():
            pass
        return [done for _, done in sorted(run.collect().items())]

    def branched(
        self,
        policy: str,
        params: GuardParams,
        trunk: Sequence[Guarded],
        act: Action | None = None,
        answers: Seventh | None = None,
    ) -> list[Guarded]:
        watch, action = self.watch(policy), act or POLICIES[policy].action
        watched = replay(watch, trunk, self.ratios, self.how.max_new_tokens, first_seat=SIZE)
        acting = [place for place, past in enumerate(watched) if past.acts]
        ratios = [self.ratios[place] for place in acting]
        run = BranchedRun(Batch(self.loaded.model, SIZE), watch, action, params, ratios, answers=answers)
        for place in acting:
            run.branch(self.how.request(self.rows[place]), watched[place])
        for _ in run.steps():
            pass
        found = run.collect()
        made = {place: found[row] for row, place in enumerate(acting)}
        return [made.get(place, past.row) for place, past in enumerate(watched)]


def tiny(folder: Path) -> Runs:
    return Runs(live_of(folder, n=6), 40)


def reference() -> Runs:
    """The shipped model and guard on a few of its own prompts, where rows act never, once and twice."""
    live = live_of(Path(), n=6)
    task = make_task("arithmetic", n_shots=2, max_new_tokens=96)
    point = load_operating_point(MODELS / "reference", "aggressive")
    point = point.model_copy(update={"tau_low": 0.3, "tau_high": 0.5, "k_escalate": 2})
    sweep = replace(
        live.sweep,
        name="reference",
        spec=ModelSpec(source="embedded:qwen2", task="arithmetic"),
        task=task,
        prompts=task.prompts(6, seed=11),
        conditions=[Condition("none", 0.0), Condition("streaming_llm", 0.75), Condition("snapkv", 0.75)],
    )
    entropy = point.model_copy(update={"tau_low": 0.02, "tau_high": 0.1, "k_escalate": 1})
    triggers = {**live.triggers, "hazard": point, "entropy": entropy}
    hazard = HazardModel.load(MODELS / "reference")
    return Runs(replace(live, sweep=sweep, triggers=triggers, hazard_models=(hazard,)), 96)


@pytest.fixture(
    scope="module", params=["tiny", pytest.param("tiny_llama", marks=pytest.mark.slow), "reference"]
)
def runs(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Runs:
    return reference() if request.param == "reference" else tiny(tiny_models[request.param])


@pytest.fixture(scope="module")
def trunk(runs: Runs) -> list[Guarded]:
    return runs.separate("static", GuardParams())


def parted_at_a_tie(one: Guarded, other: Guarded) -> bool:
    """Tell whether the two first differ where the logits of the best two tokens all but tie."""
    n = min(len(one.token_ids), len(other.token_ids))
    differ = np.flatnonzero(one.token_ids[:n] != other.token_ids[:n])
    if not len(differ):
        return False
    best = [SIGNALS.index(name) for name in LOGPROBS[:2]]
    gaps = [row.signals[differ[0], best] @ (1, -1) for row in (one, other)]
    return min(gaps) < TIE


@pytest.mark.parametrize(
    "params", [GuardParams(), GuardParams(resume=True), GuardParams(max_rewinds=0)], ids=str
)
@pytest.mark.parametrize("policy", ACTING)
def test_a_branch_is_the_run_from_the_start(
    runs: Runs, trunk: list[Guarded], policy: str, params: GuardParams
) -> None:
    compare(runs, runs.separate(policy, params), runs.branched(policy, params, trunk))


@pytest.mark.parametrize("first", [1, 14])
@pytest.mark.parametrize("policy", ["rollback", "loop"])
@pytest.mark.parametrize("action", [Action.ROLLBACK, Action.STOP])
def test_a_branch_that_knows_answers_is_the_run_from_the_start(
    runs: Runs, trunk: list[Guarded], action: Action, policy: str, first: int
) -> None:
    how = action, Seventh(first)
    alone = runs.separate(policy, GuardParams(), *how)
    branched = runs.branched(policy, GuardParams(), trunk, *how)
    compare(runs, alone, branched)
    stopped = [row for row in branched if row.stop_reason == "guard"]
    assert all(row.events[-1].what == "stop" for row in stopped)
    assert action is Action.STOP or not stopped


def test_branches_that_end_at_once_are_among_those_compared(runs: Runs, trunk: list[Guarded]) -> None:
    rows = runs.branched("rollback", GuardParams(), trunk, Action.STOP, Seventh(1))
    assert any(row.events[0].what == "stop" for row in rows if row.events)


@pytest.mark.parametrize("first", [1, 14, 1000])
def test_a_stop_string_after_the_answer_is_the_static_text_cut_there(
    trunk: list[Guarded], first: int
) -> None:
    answers, n_prompt = Seventh(first), 50
    cut = 0
    for row in trunk:
        done, ends = stop_at_answer(row, n_prompt, answers, [None]), answers.ends(row.token_ids.tolist())
        if not ends or ends[0] >= len(row.token_ids):
            assert done is row
            continue
        cut += 1
        n = ends[0] + 1  # with the token that tells that the answer is whole
        assert done.token_ids.tolist() == row.token_ids[: ends[0]].tolist()
        assert (done.stop_reason, done.n_steps, done.n_rewound, done.safe_at) == ("guard", n, 1, ends[0])
        assert done.kv_saved == pytest.approx(np.mean(1 - row.kv_tokens[:n] / (n_prompt + np.arange(n))))
    assert bool(cut) == (first < 1000)


def compare(runs: Runs, alone: list[Guarded], branched: list[Guarded]) -> None:
    assert len(alone) == len(branched) == len(runs.rows)
    compared = [pair for pair in zip(alone, branched, strict=True) if not parted_at_a_tie(*pair)]
    assert len(compared) >= len(alone) - 1
    for one, other in compared:
        assert other.token_ids.tolist() == one.token_ids.tolist()
        assert other.events == one.events
        assert len(other.signals) == len(other.token_ids)
        for name in ("stop_reason", "safe_at", "n_steps", "n_rewound"):
            assert getattr(other, name) == getattr(one, name), name
        assert other.states.tolist() == one.states.tolist()
        np.testing.assert_allclose(other.hazard, one.hazard, atol=1e-4)
        np.testing.assert_array_equal(other.kv_tokens, one.kv_tokens)
        assert other.kv_saved == pytest.approx(one.kv_saved, abs=1e-12)


def test_rows_that_never_act_act_once_and_act_again_are_all_among_those_compared(
    runs: Runs, trunk: list[Guarded]
) -> None:
    done = [row for policy in ACTING for row in runs.branched(policy, GuardParams(), trunk)]
    acts = {sum(event.what in set(Action) for event in row.events) for row in done}
    assert {0, 1, GuardParams().max_rewinds} <= acts
    assert len({row.events[0].t for row in done if row.events}) > 1


def test_a_row_that_reaches_safe_with_its_last_token_does_not_act(runs: Runs, trunk: list[Guarded]) -> None:
    watch = runs.watch("rollback")
    seen = replay(watch, trunk, runs.ratios, runs.how.max_new_tokens, first_seat=SIZE)
    fired = [(row, past.row.safe_at) for row, past in zip(trunk, seen, strict=True) if past.acts]
    cut = [
        replace(row, token_ids=row.token_ids[: t + 1], signals=row.signals[: t + 1], stop_reason="eos")
        for row, t in fired
    ]
    assert cut
    ended = replay(runs.watch("rollback"), cut, [r for r, p in zip(runs.ratios, seen, strict=True) if p.acts],
                   runs.how.max_new_tokens, first_seat=0)  # fmt: skip
    assert [past.row.safe_at for past in ended] == [t for _, t in fired]
    assert not any(past.acts for past in ended)


def test_a_branch_depends_on_what_its_trunk_held(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    live = live_of(tiny_models["tiny"], decoding_n=0, actions=("restore",), switch_traces=0)
    loaded = load_model("tiny", live.spec, "cpu")
    run_live(live, loaded, tmp_path, progress=False)
    folder = tmp_path / "parts"
    plan = compile_sweep(live.sweep, loaded, folder, partial(cut_by_policy, live, loaded), restorable=True)
    before = cut_branches(live, plan, folder, 0)
    assert keep_made(folder / "further", before) == []
    trunk = next(part.trunk for part in before)
    tokens = read_table("tokens", trunk.path("tokens", folder))
    entropy = tokens["entropy"] + np.float32(0.5) * (tokens.index == 0)
    trunk.write("tokens", tokens.assign(entropy=entropy.astype("float32")), folder, plan.batch_size)
    after = cut_branches(live, plan, folder, 0)
    changed = {a.name for a, b in zip(after, before, strict=True) if a.fingerprint != b.fingerprint}
    assert changed == {part.name for part in after if part.trunk == trunk}
    assert len(changed) < len(after)
