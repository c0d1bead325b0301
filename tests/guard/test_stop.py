"""What a guard does that is told where the answers of a text end."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvpress import KnormPress

from guarded import encoded, ids_of, static
from kvguard import Guard
from kvguard.errors import KvguardError
from kvguard.guard.actions import GuardParams

PRESS = KnormPress(0.5)


def words(text):
    """Every word is an answer."""
    return [found.end() for found in re.finditer(r"\w+", text)]


def words_from(n):
    return lambda text: words(text)[n:]


def streamed(guard, reference, prompts, **how):
    """The text, the tokens, the actions and the last piece of every prompt, from the stream."""
    kept, actions, last = [[] for _ in prompts], [[] for _ in prompts], [None for _ in prompts]
    for piece in guard.stream(*reference, prompts, **how):
        assert last[piece.prompt] is None or last[piece.prompt].stop_reason is None, "it had ended"
        kept[piece.prompt].append(piece)
        last[piece.prompt] = piece
        if piece.event is not None:
            actions[piece.prompt].append(piece.event)
            del kept[piece.prompt][piece.event.kept :]
    return [
        ("".join(p.text for p in pieces), [p.token_id for p in pieces], tuple(events), piece.stop_reason)
        for pieces, events, piece in zip(kept, actions, last, strict=True)
    ]


def test_a_stopped_text_ends_with_its_last_answer_and_is_the_beginning_of_what_it_would_be(
    guards, reference, prompts, monkeypatch
):
    plain = guards["late"].generate(*reference, prompts, press=PRESS, action="none")
    rolled = guards["late"].generate(*reference, prompts, press=PRESS)
    monkeypatch.setattr("kvguard.engine.batch.full_cache", lambda *_: pytest.fail("a cache was restored"))
    out = guards["late"].generate(*reference, prompts, press=PRESS, action="stop", answered=words)
    acted = [number for number, output in enumerate(out) if output.actions]
    assert acted
    for number, output in enumerate(out):
        if number not in acted:
            assert output.token_ids.tolist() == plain[number].token_ids.tolist()
            continue
        [event] = output.actions
        n = event.t + 1
        seen = reference[1].decode(plain[number].token_ids[:n], skip_special_tokens=True)
        end = words(seen)[-1]
        assert output.text.startswith(seen[:end])
        assert reference[1].decode(output.token_ids[:-1], skip_special_tokens=True) != output.text
        assert output.token_ids.tolist() == plain[number].token_ids[: event.kept].tolist()
        assert (event.what, output.stop_reason, output.error) == ("stop", "guard", None)
        assert (output.n_steps, output.n_rewound) == (n, n - event.kept)
        assert output.kv_saved > rolled[number].kv_saved  # nothing was restored


@pytest.mark.parametrize(
    "params", [GuardParams(), GuardParams(max_rewinds=0), GuardParams(resume=True)], ids=str
)
def test_a_text_without_an_answer_is_rolled_back(guards, reference, prompts, params):
    guard = Guard(guards["stubborn"].hazard, guards["stubborn"].point, guards["stubborn"].card, params)
    how = {"press": PRESS, "answered": lambda text: []}
    rolled = guard.generate(*reference, prompts, **how, action="rollback")
    stopped = guard.generate(*reference, prompts, **how, action="stop")
    assert ids_of(stopped) == ids_of(rolled)
    assert [output.actions for output in stopped] == [output.actions for output in rolled]
    assert any(output.actions for output in rolled)


def test_a_rolled_back_text_keeps_its_first_answer_and_goes_on_uncompressed(guards, reference, prompts):
    plain = guards["late"].generate(*reference, prompts, press=PRESS, action="none")
    rolled = guards["late"].generate(*reference, prompts, press=PRESS)
    out = guards["late"].generate(*reference, prompts, press=PRESS, answered=words_from(2))
    earlier = 0
    for number, output in enumerate(out):
        if not output.actions:
            continue
        kept = output.actions[0].kept
        assert kept <= rolled[number].actions[0].kept
        earlier += kept < rolled[number].actions[0].kept
        seen = plain[number].token_ids[: output.actions[0].t + 1]
        text = reference[1].decode(seen, skip_special_tokens=True)
        first = words_from(2)(text)[0]
        assert reference[1].decode(seen[:kept], skip_special_tokens=True).startswith(text[:first])
        assert not reference[1].decode(seen[: kept - 1], skip_special_tokens=True).startswith(text[:first])
        assert output.token_ids[:kept].tolist() == seen[:kept].tolist()
        ids = [*encoded(reference, prompts[number]), *seen[:kept].tolist()]
        assert (
            output.token_ids[kept:].tolist()
            == static(reference, [ids], None)[0][: len(output.token_ids) - kept]
        )
    assert earlier


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 90), max_size=3),
    st.sampled_from(["stop", "rollback"]),
    st.sampled_from([(), (" and",), (".", "\n\nQ:"), (" ",), ("e has 999",)]),
    st.booleans(),
)
def test_streaming_equals_generating_whatever_the_answers_are(
    guards, reference, prompts, ends, action, stop, sampled
):
    how = {
        "press": PRESS,
        "action": action,
        "stop": stop,
        "answered": lambda text: [end for end in ends if end <= len(text)],
        **({"temperature": 1.5, "seed": 3} if sampled else {}),
    }
    out = guards["stubborn"].generate(*reference, prompts[:3], **how)
    told = streamed(guards["stubborn"], reference, prompts[:3], **how)
    assert told == [(o.text, o.token_ids.tolist(), o.actions, o.stop_reason) for o in out]


def test_the_beginning_of_a_stop_string_is_not_told_by_a_stopped_text(guards, reference, prompts):
    """The stop string might begin with what the text was cut at; both ways must give the same text."""
    plain = guards["late"].generate(*reference, prompts[:1], press=PRESS, action="none")[0]
    [event] = (
        guards["late"]
        .generate(*reference, prompts[:1], press=PRESS, action="stop", answered=lambda text: [len(text)])[0]
        .actions
    )
    seen = reference[1].decode(plain.token_ids[: event.kept], skip_special_tokens=True)
    how = {"press": PRESS, "action": "stop", "stop": [seen[-2:] + "never said"]}
    [out] = guards["late"].generate(*reference, prompts[:1], **how, answered=lambda text: [len(text)])
    assert (out.text, out.stop_reason) == (seen[:-2], "guard")
    assert (
        streamed(guards["late"], reference, prompts[:1], **how, answered=lambda text: [len(text)])[0][0]
        == out.text
    )


def test_a_function_is_asked_only_when_a_row_acts(guards, reference, prompts):
    asked = []

    def answered(text):
        asked.append(text)
        return []

    for name, action in (("calm", "stop"), ("late", "restore"), ("late", "none"), ("late", "restart")):
        guards[name].generate(*reference, prompts, press=PRESS, action=action, answered=answered)
    assert asked == []
    out = guards["late"].generate(*reference, prompts, press=PRESS, action="rollback", answered=answered)
    assert len(asked) == sum(len(output.actions) for output in out)


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_what_a_function_raises_is_one_line_and_leaves_the_model_as_it_was(
    guards, reference, prompts, action
):
    def answered(text):
        raise ZeroDivisionError("by\nnothing")

    before = reference[0].config._attn_implementation
    how = {"press": PRESS, "action": action, "answered": answered}
    for call in (guards["late"].generate, lambda *a, **k: list(guards["late"].stream(*a, **k))):
        with pytest.raises(
            KvguardError, match=r"^answered: ZeroDivisionError: by nothing: make it"
        ) as caught:
            call(*reference, prompts, **how)
        assert "\n" not in str(caught.value)
        assert reference[0].config._attn_implementation == before
    assert guards["calm"].generate(*reference, prompts, **how)[0].error is None
