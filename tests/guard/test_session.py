"""The front door: what a library user gets, whatever the prompts, the press and the sampling."""

import subprocess
import sys

import numpy as np
import pytest
from kvpress import (
    AdaKVPress,
    DMSPress,
    KnormPress,
    ObservedAttentionPress,
    SimLayerKVPress,
    SnapKVPress,
    StreamingLLMPress,
    ThinKPress,
)

import bundles
from guarded import NEW, encoded, eos, ids_of, static
from kvguard import Guard
from kvguard.engine.sampling import Nucleus
from kvguard.guard import job as job_module
from kvguard.guard.actions import GuardParams
from kvguard.guard.controller import State


def test_a_row_that_starts_again_is_never_compressed(guards, reference, prompts):
    out = guards["late"].generate(*reference, prompts, press=KnormPress(0.75), action="restart")
    assert all(output.actions[0].kept == 0 for output in out if output.actions)
    uncompressed = static(reference, prompts, None)
    acted = [number for number, output in enumerate(out) if output.actions]
    assert acted
    assert [out[number].token_ids.tolist() for number in acted] == [uncompressed[number] for number in acted]


def test_every_token_has_its_state_hazard_and_memory(guards, reference, prompts):
    [first, *_] = out = guards["late"].generate(*reference, prompts, press=SnapKVPress(0.75, window_size=16))
    assert len(out) == len(prompts)
    for output in out:
        n = len(output.token_ids)
        assert {len(output.states), len(output.hazard), len(output.kv_tokens)} == {n}
        assert output.text == reference[1].decode(output.token_ids, skip_special_tokens=True)
        assert output.error is None
        assert output.stop_reason == ("eos" if output.token_ids[-1] in eos(reference) else "length")
        assert n == NEW or output.stop_reason == "eos"
        assert ((output.hazard >= 0) & (output.hazard <= 1)).all()
        assert output.n_steps == n + output.n_rewound
    [event, *_] = first.actions
    assert event.what == "rollback"
    assert event.t - 0.4 * NEW in (2, 3)  # after three tokens above tau_high, as the point says
    assert event.kept <= event.t + 1 - 3
    assert (first.hazard[: event.kept] < 0.4).all()  # what stays are the tokens before it rose to tau_low
    assert event.kept >= 0.4 * NEW
    prompt = len(encoded(reference, prompts[0]))
    assert first.kv_tokens[0] == pytest.approx(prompt * 0.25, abs=1)
    assert first.kv_tokens[event.kept] == prompt + event.kept
    assert first.states[event.kept :].max() <= State.SAFE


@pytest.mark.parametrize("action", ["none", "restore", "rollback"])
@pytest.mark.parametrize("press", [SnapKVPress(0.75, window_size=16), KnormPress(0.5), None])
def test_a_guard_that_never_alarms_is_static_compression(guards, reference, prompts, press, action):
    out = guards["calm"].generate(*reference, prompts, press=press, action=action)
    assert ids_of(out) == static(reference, prompts, press)
    assert not any(output.actions for output in out)


def test_a_guard_that_only_watches_is_static_compression_whatever_it_sees(guards, reference, prompts):
    out = guards["at once"].generate(*reference, prompts, press=KnormPress(0.5), action="none")
    assert ids_of(out) == static(reference, prompts, KnormPress(0.5))
    assert all((output.states == State.SAFE).all() for output in out)


def test_a_guard_that_rolls_everything_back_is_no_compression(guards, reference, prompts):
    out = guards["at once"].generate(*reference, prompts, press=KnormPress(0.5))
    assert ids_of(out) == static(reference, prompts, None)
    assert ids_of(out) != static(reference, prompts, KnormPress(0.5))
    assert all(output.kv_saved < 0.1 for output in out)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}, {"stop": ["zz", " and"]}],
    ids=["greedy", "drawn", "stopped"],
)
@pytest.mark.parametrize("action", ["restore", "rollback", "restart"])
def test_streaming_equals_generating(guards, reference, prompts, action, options):
    asked = [*prompts, [5] * 5000]
    how = {"press": KnormPress(0.5), "action": action, **options}
    out = guards["stubborn"].generate(*reference, asked, **how)
    kept = [[] for _ in asked]
    actions = [[] for _ in asked]
    for piece in guards["stubborn"].stream(*reference, asked, **how):
        kept[piece.prompt].append(piece)
        if piece.event is not None:
            actions[piece.prompt].append(piece.event)
            del kept[piece.prompt][piece.event.kept :]
    assert any(events for events in actions)
    for pieces, events, output in zip(kept, actions, out, strict=True):
        assert [piece.stop_reason for piece in pieces] == [None] * (len(pieces) - 1) + [output.stop_reason]
        assert pieces[-1].error == output.error
        assert "".join(piece.text for piece in pieces) == output.text
        assert tuple(events) == output.actions
        tokens = [piece for piece in pieces if piece.token_id is not None]
        assert [piece.token_id for piece in tokens] == output.token_ids.tolist()
        assert [piece.t for piece in tokens] == list(range(len(tokens)))
        assert [piece.hazard for piece in tokens] == output.hazard.tolist()
        assert [piece.state for piece in tokens] == output.states.tolist()


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(guards, reference, prompts):
    plain = guards["calm"].generate(*reference, prompts)
    stop = plain[0].text[20:24]
    out = guards["calm"].generate(*reference, prompts, stop=[stop, "never said"])
    assert (out[0].text, out[0].stop_reason) == (plain[0].text.partition(stop)[0], "stop")
    for whole, cut in zip(plain, out, strict=True):
        assert cut.token_ids.tolist() == whole.token_ids[: len(cut.token_ids)].tolist()
        assert (cut.stop_reason == "stop") == (stop in whole.text)


def test_drawn_tokens_depend_on_the_seed_and_not_on_the_batch(guards, reference, prompts, monkeypatch):
    def drawn(seed=1, **options):
        how = {"press": KnormPress(0.5), "temperature": 1.0, "top_p": 0.95, "seed": seed}
        return ids_of(guards["late"].generate(*reference, prompts, **how, **options))

    one = drawn()
    assert one == drawn() == drawn(batch_size=1) == drawn(batch_size=3)
    assert one != drawn(seed=2)
    monkeypatch.setattr(job_module, "rows_in_memory", lambda model, n_tokens: 2)
    assert drawn() == one
    calm = guards["calm"].generate(
        *reference, prompts, press=KnormPress(0.5), temperature=1.0, top_p=0.95, seed=1
    )
    assert ids_of(calm) == static(reference, prompts, KnormPress(0.5), Nucleus(1.0, 0.95, 1))


def test_a_rewound_row_draws_anew(guards, reference, prompts):
    how = {"temperature": 4.0, "seed": 4, "press": None}
    first = guards["stubborn"].generate(*reference, prompts, **how, action="none")
    again = guards["stubborn"].generate(*reference, prompts, **how)
    differ = 0
    for before, after in zip(first, again, strict=True):
        if after.actions:
            kept = after.actions[0].kept
            assert before.token_ids[:kept].tolist() == after.token_ids[:kept].tolist()
            differ += before.token_ids[kept : kept + 3].tolist() != after.token_ids[kept : kept + 3].tolist()
    assert differ
    greedy = guards["stubborn"].generate(*reference, prompts, press=None)  # the same cache, the same tokens
    assert ids_of(greedy) == static(reference, prompts, None)
    assert any(output.n_rewound for output in greedy)


@pytest.mark.parametrize("press", [None, KnormPress(0.5)])
@pytest.mark.parametrize("action", ["restore", "rollback", "restart"])
def test_a_prompt_of_one_token_can_be_rewound_to_nothing(guards, reference, prompts, press, action):
    asked = [[5], prompts[0]]
    out = guards["at once"].generate(*reference, asked, press=press, action=action)
    assert out[0].actions[0].kept == (1 if action == "restore" else 0)
    assert ids_of(out)[0] == static(reference, asked[:1], None)[0]
    assert out[0].kv_tokens.tolist() == list(range(1, len(out[0].token_ids) + 1))


def test_rewinds_end(tmp_path, reference, prompts):
    folder = bundles.write_bundle(tmp_path / "guard", reference[0], position=0.4, uncompressed=True)
    for limit in (0, 1, 3):
        guard = Guard.load(folder, params=GuardParams(max_rewinds=limit))
        out = guard.generate(*reference, prompts, press=KnormPress(0.5))
        assert max(sum(event.what == "rollback" for event in o.actions) for o in out) == limit


def test_presses_that_change_more_than_a_choice_of_entries_work_too(guards, reference, prompts):
    presses = (AdaKVPress(SnapKVPress(0.5, window_size=16)), ThinKPress(0.5), ObservedAttentionPress(0.5))
    for press in (*presses, SimLayerKVPress(0.5), DMSPress(KnormPress(), threshold=-20.0)):
        out = guards["late"].generate(*reference, prompts[:2], press=press)
        assert all(output.error is None for output in out)


def test_a_budget_while_decoding_holds_until_the_guard_stops_it(guards, reference, prompts):
    how = {"press": StreamingLLMPress(0.5), "compression_interval": 8}
    static = guards["late"].generate(*reference, prompts, **how, action="none")
    held = guards["late"].generate(*reference, prompts, **how, action="hold")
    acted = 0
    for before, after in zip(static, held, strict=True):
        grown = np.diff(before.kv_tokens)
        assert (grown < 0).any()
        if after.actions:
            acted += 1
            [event] = after.actions
            assert event.what == "hold"
            assert (np.diff(after.kv_tokens[event.t :]) == 1).all()
            assert before.token_ids[: event.t + 1].tolist() == after.token_ids[: event.t + 1].tolist()
            assert after.kv_saved < before.kv_saved
    assert acted


def test_the_model_is_left_as_it_was(guards, reference, prompts):
    model = reference[0]
    before = model.config._attn_implementation
    stream = guards["calm"].stream(*reference, prompts, press=KnormPress(0.5))
    next(stream)
    stream.close()
    assert model.config._attn_implementation == before
    guards["late"].generate(
        *reference, prompts[:1], press=SnapKVPress(0.5, window_size=16), compression_interval=32
    )
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_importing_kvguard_is_light_and_the_guard_is_there():
    import kvguard

    code = "import sys, kvguard; print(sorted({'torch', 'xgboost', 'pandas', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert kvguard.Guard is Guard
    assert not hasattr(kvguard, "Gard")
