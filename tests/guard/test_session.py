"""The front door: what a library user gets, whatever the prompts, the press and the sampling."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from kvpress import (
    AdaKVPress,
    DecodingPress,
    DMSPress,
    ExpectedAttentionPress,
    KnormPress,
    ObservedAttentionPress,
    SimLayerKVPress,
    SnapKVPress,
    StreamingLLMPress,
    ThinKPress,
    TOVAPress,
)

import bundles
from kvguard import Guard
from kvguard.engine.batch import Batch
from kvguard.engine.loop import decode
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import Condition
from kvguard.engine.requests import Decoding, Row
from kvguard.engine.sampling import Nucleus, greedy
from kvguard.errors import KvguardError
from kvguard.guard import job as job_module
from kvguard.guard.actions import GuardParams
from kvguard.guard.controller import ControllerParams, State
from kvguard.guard.text import Unfolding
from kvguard.models.reference import REFERENCE_PATHS
from kvguard.tasks import sample_prompts

NEW = bundles.MAX_NEW_TOKENS
AT_ONCE = ControllerParams(tau_low=0.0, tau_high=0.0, k_escalate=1, j_deescalate=1000)


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = REFERENCE_PATHS["reference"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompts():
    asked = sample_prompts("arithmetic", 4, 99, n_shots=1)["prompt"]
    return [forms["messages"][0]["content"] for forms in asked]


@pytest.fixture(scope="module")
def guards(tmp_path_factory, reference):
    """Guards that never alarm, that alarm late, that alarm late whatever is compressed, and at once."""
    folder, model = tmp_path_factory.mktemp("guards"), reference[0]
    kinds = {
        "calm": {},
        "late": {"position": 0.4},
        "stubborn": {"position": 0.4, "uncompressed": True},
        "at once": {"params": AT_ONCE},
    }
    return {
        name: Guard.load(bundles.write_bundle(folder / name, model, **kind)) for name, kind in kinds.items()
    }


def static(reference, prompts, press, sampler=None):
    """The token ids that compression without any guard gives."""
    from kvguard.models.load import LoadedModel

    loaded = LoadedModel("reference", *reference, "")
    rows = []
    for prompt in prompts:
        ids = torch.tensor(loaded.encode(prompt) if isinstance(prompt, str) else prompt)
        done = prefill(loaded.model, ids, {Condition("c", 0.5): press}, "sdpa")
        rows.append(Row(ids, done.logits, done.kept[Condition("c", 0.5)]))
    how = Decoding(NEW, loaded.eos_ids, sampler=sampler or greedy)
    found = decode(loaded.model, rows, how, batch_size=8)
    return [ids[:n].tolist() for ids, n in zip(found.token_ids, found.lengths, strict=True)]


def encoded(reference, prompt):
    message = [{"role": "user", "content": prompt}]
    return reference[1].apply_chat_template(message, add_generation_prompt=True)["input_ids"]


def ids_of(outputs):
    return [output.token_ids.tolist() for output in outputs]


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
        assert output.stop_reason == ("eos" if output.token_ids[-1] in _eos(reference) else "length")
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


def _eos(reference):
    eos = reference[0].generation_config.eos_token_id
    return eos if isinstance(eos, list) else [eos]


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
    "options", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}], ids=["greedy", "drawn"]
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_rewinds": -1}, "guard.max_rewinds: -1 does not fit: "),
        ({"max_rewind": 1}, "unknown key 'guard.max_rewind'; did you mean 'max_rewinds'?"),
    ],
)
def test_settings_without_sense_are_one_line(settings, words):
    with pytest.raises(KvguardError) as caught:
        GuardParams(**settings)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_settings_of_another_kind_are_refused_before_anything_runs(tmp_path, reference):
    folder = bundles.write_bundle(tmp_path / "guard", reference[0])
    with pytest.raises(KvguardError, match=r"^params: .* will not do: pass GuardParams"):
        Guard.load(folder, params={"max_rewinds": 1})


def test_what_is_wrong_with_one_prompt_is_recorded_and_the_others_finish(guards, reference, prompts):
    asked = [[3, 4, 5], prompts[0], [5] * 5000, [], prompts[1], [5] * 20 + [-1], [5] * 20 + [10**6]]
    out = guards["calm"].generate(*reference, asked, press=SnapKVPress(0.75, window_size=16))
    window = reference[0].config.max_position_embeddings
    assert "prompt 0: 3 tokens are too few for SnapKVPress@0.75, which needs 17" in out[0].error
    assert f"prompt 2: 5000 tokens and {NEW} new ones exceed the model's window of {window}" in out[2].error
    assert "prompt 3: 0 tokens" in out[3].error
    assert "prompt 5: the model knows no token -1" in out[5].error
    assert "prompt 6: the model knows no token 1000000" in out[6].error
    for place in (0, 2, 3, 5, 6):
        assert (out[place].stop_reason, out[place].text, len(out[place].token_ids)) == ("refused", "", 0)
    good = guards["calm"].generate(*reference, prompts[:2], press=SnapKVPress(0.75, window_size=16))
    assert [out[1].text, out[4].text] == [output.text for output in good]
    alone = guards["calm"].generate(*reference, [[]])
    assert alone[0].stop_reason == "refused"
    assert guards["calm"].generate(*reference, []) == []


def test_a_prompt_that_the_press_itself_refuses_is_recorded_too(guards, reference, prompts, monkeypatch):
    score = KnormPress.score

    def picky(self, module, hidden_states, *rest):
        assert hidden_states.shape[1] > 20, "too short for me"
        return score(self, module, hidden_states, *rest)

    monkeypatch.setattr(KnormPress, "score", picky)
    short, long = guards["calm"].generate(*reference, [[5] * 10, prompts[0]], press=KnormPress(0.5))
    assert short.stop_reason == "refused"
    assert "too short for me" in short.error
    assert (long.error, len(long.token_ids)) == (
        None,
        NEW if long.stop_reason == "length" else len(long.token_ids),
    )


def test_logits_that_are_no_numbers_end_their_row_and_no_other(guards, reference, prompts, monkeypatch):
    before = guards["late"].generate(*reference, prompts, press=KnormPress(0.5))
    feed = Batch.feed

    def poisoned(batch):
        feed(batch)
        prompt = np.array([batch.requests[row].key for row in batch.row.tolist()])
        batch.logits[(prompt == 2) & (batch.t == 6)] = float("nan")

    monkeypatch.setattr(Batch, "feed", poisoned)
    finished = []
    after = guards["late"].generate(*reference, prompts, press=KnormPress(0.5), on_finish=finished.append)
    assert sorted(finished) == [0, 1, 2, 3]
    assert after[2].stop_reason == "invalid"
    assert "after 6 tokens are no numbers" in after[2].error
    assert after[2].token_ids.tolist() == before[2].token_ids[:6].tolist()
    for place in (0, 1, 3):
        assert after[place].text == before[place].text
    pieces = [p for p in guards["late"].stream(*reference, prompts, press=KnormPress(0.5)) if p.prompt == 2]
    assert (pieces[-1].token_id, pieces[-1].stop_reason, pieces[-1].error) == (
        None,
        "invalid",
        after[2].error,
    )
    assert "".join(piece.text for piece in pieces) == after[2].text


def test_memory_that_runs_out_is_one_line(guards, reference, prompts, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Batch, "feed", full)
    with pytest.raises(KvguardError, match="no memory for even one row"):
        guards["calm"].generate(*reference, prompts)
    with pytest.raises(KvguardError, match="memory ran out: use a smaller batch_size"):
        list(guards["calm"].stream(*reference, prompts))


def test_after_running_out_of_memory_half_the_batch_gives_the_same_texts(
    guards, reference, prompts, monkeypatch
):
    before = guards["late"].generate(*reference, prompts, press=KnormPress(0.5))
    feed, finished = Batch.feed, []

    def tight(batch):
        if batch.n > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        feed(batch)

    monkeypatch.setattr(Batch, "feed", tight)
    after = guards["late"].generate(*reference, prompts, press=KnormPress(0.5), on_finish=finished.append)
    assert [output.text for output in after] == [output.text for output in before]
    assert sorted(finished) == [0, 1, 2, 3]


def _of_ratio(ratio):
    press = KnormPress()
    press.compression_ratio = ratio  # where kvpress no longer looks
    return press


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"action": "undo"}, "'undo' .*rollback"),
        ({"action": "hold", "press": KnormPress(0.5)}, "compression_interval.*restore, rollback, restart"),
        ({"compression_interval": 16}, "pass a press"),
        ({"press": "snapkv"}, "'snapkv' is no kvpress press"),
        ({"press": DecodingPress(KnormPress())}, "DecodingPress .*compression_interval"),
        (
            {"press": ObservedAttentionPress(0.5), "compression_interval": 32},
            "ObservedAttentionPress.*KnormPress",
        ),
        ({"press": AdaKVPress(KnormPress(0.5)), "compression_interval": 32}, "AdaKVPress.*KnormPress"),
        ({"press": ThinKPress(0.5), "compression_interval": 32}, "ThinKPress.*KnormPress"),
        ({"press": _of_ratio(-0.5)}, "compression_ratio of -0.5"),
        ({"press": _of_ratio(1.0)}, "compression_ratio of 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "seed": 1.5}, "seed"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "seed": -1}, "seed"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: 2.5"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
@pytest.mark.parametrize("how", ["generate", "stream"])
def test_a_wrong_argument_is_one_line_before_anything_runs(
    guards, reference, prompts, monkeypatch, how, options, words
):
    def ran(*_, **__):
        raise AssertionError("the model ran")

    monkeypatch.setattr(reference[0].model, "forward", ran)
    with pytest.raises(KvguardError, match=words) as found:
        getattr(guards["calm"], how)(*reference, prompts, **options)
    assert "\n" not in str(found.value)


def test_one_text_is_not_a_list_of_letters(guards, reference):
    with pytest.raises(KvguardError, match="pass \\[prompt\\]"):
        guards["calm"].generate(*reference, "abc")


@pytest.mark.parametrize("prompts", [None, [None], [5], [[1.5]]])
def test_prompts_that_are_neither_texts_nor_token_ids_are_one_line(guards, reference, prompts):
    with pytest.raises(KvguardError, match=r"prompts: .*a list of texts, or of lists of token ids"):
        guards["calm"].generate(*reference, prompts)


def test_prompts_may_be_drawn_from_an_iterator_and_token_ids_be_a_tensor(guards, reference, prompts):
    ids = encoded(reference, prompts[0])
    out = guards["calm"].generate(*reference, iter([prompts[0], torch.tensor(ids), np.array(ids)]))
    assert len({output.text for output in out}) == 1
    assert len(out) == 3


def test_a_name_is_no_model(guards, reference, prompts):
    with pytest.raises(KvguardError, match=r"a str and a .* are none: pass what AutoModelForCausalLM"):
        guards["calm"].generate("models/reference", reference[1], prompts)


def test_a_model_that_kvpress_does_not_know_is_refused(guards, reference):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50))
    with pytest.raises(KvguardError, match=r"GPT2LMHeadModel .*Qwen2"):
        guards["calm"].generate(model, reference[1], ["abc"])


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


@pytest.mark.parametrize("press", [SnapKVPress(0.95, window_size=16), ExpectedAttentionPress(0.95)])
def test_a_prompt_whose_budget_the_press_cannot_hold_is_recorded_and_the_others_finish(
    guards, reference, prompts, press
):
    how = {"press": press, "compression_interval": 24, "action": "hold"}
    ids = encoded(reference, prompts[0])
    short, long = guards["late"].generate(*reference, [ids[:25], prompts[1]], **how)
    assert short.stop_reason == "refused"
    assert f"prompt 0: 25 tokens leave {type(press).__name__}@0.95 too small a budget" in short.error
    assert "\n" not in short.error
    [alone] = guards["late"].generate(*reference, [prompts[1]], **how)
    assert (long.error, long.text) == (None, alone.text)


@pytest.mark.parametrize(("press", "interval"), [(TOVAPress(0.95), 4), (StreamingLLMPress(0.9), 2)])
def test_a_budget_of_one_entry_is_no_reason_to_refuse(guards, reference, prompts, press, interval):
    ids = encoded(reference, prompts[0])[:15]
    [output] = guards["late"].generate(*reference, [ids], press=press, compression_interval=interval)
    assert output.error is None


def test_token_ids_are_taken_as_they_are(guards, reference, prompts):
    text, given = guards["calm"].generate(*reference, [prompts[0], encoded(reference, prompts[0])])
    assert text.token_ids.tolist() == given.token_ids.tolist()


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


def test_characters_of_several_tokens_come_whole_and_can_be_rewound(tiny_models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["tiny"])
    text = "aé€ 𝄞z"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)
    unfolding = Unfolding(tokenizer)
    pieces = [unfolding.add(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    for kept in range(len(ids)):
        unfolding.rewind(kept)
        assert "".join(pieces[:kept]) + "".join(unfolding.add(token) for token in ids[kept:]) == text
    unfolding.rewind(2)
    assert unfolding.rest() == "\ufffd"  # half a character, at the end of a text


def test_importing_kvguard_is_light_and_the_guard_is_there():
    import kvguard

    code = "import sys, kvguard; print(sorted({'torch', 'xgboost', 'pandas', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert kvguard.Guard is Guard
    assert not hasattr(kvguard, "Gard")
