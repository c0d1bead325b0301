"""How texts are drawn: penalties, biases and cuts do through the API what their definitions say."""

import pytest
from kvpress import SnapKVPress

from kvguard.engine.penalties import Adjusted
from kvguard.engine.sampling import Nucleus, greedy
from kvguard.guard.controller import ControllerParams
from kvguard.serve.chance import samplers
from kvguard.serve.protocol import CompletionRequest

SEEN = {"model": "reference", "temperature": 0, "max_tokens": 24}
OWN = ("top_k", "min_p", "repetition_penalty", "ignore_eos", "kv")  # what the client has no argument for
NEVER = ControllerParams(tau_low=1.0, tau_high=1.0, k_escalate=1, j_deescalate=1)
AT_ONCE = ControllerParams(tau_low=0.0, tau_high=0.0, k_escalate=2, j_deescalate=1000)


def text_of(server, prompt, **how):
    """The text that the official client gets."""
    own = {name: how.pop(name) for name in OWN if name in how}
    answer = server.client().completions.create(prompt=prompt, **{**SEEN, **how}, extra_body=own)
    return answer.choices[0].text


def test_a_bias_forces_a_token_and_forbids_one(server, loaded, prompts):
    tokenizer = loaded.tokenizer
    [seven] = tokenizer("7", add_special_tokens=False)["input_ids"]
    assert text_of(server, prompts[0], logit_bias={str(seven): 100}, max_tokens=5) == "77777"
    free = tokenizer(text_of(server, prompts[0]), add_special_tokens=False)["input_ids"]
    banned = text_of(server, prompts[0], logit_bias={str(free[0]): -100})
    assert tokenizer(banned, add_special_tokens=False)["input_ids"][0] != free[0]


@pytest.mark.parametrize("penalty", [1.3, 4.0, 0.5])
def test_a_repetition_penalty_is_that_of_transformers(server, offline, prompts, penalty):
    model, tokenizer = offline
    ids = tokenizer(prompts[0], return_tensors="pt")["input_ids"]
    how = {"max_new_tokens": 24, "do_sample": False, "repetition_penalty": penalty}
    wanted = model.generate(ids, pad_token_id=0, **how)[0, ids.shape[1] :].tolist()
    found = text_of(
        server, ids[0].tolist(), repetition_penalty=penalty, kv={"compressor": "none", "guard": False}
    )
    assert found == tokenizer.decode(wanted, skip_special_tokens=True)


def test_a_frequency_penalty_grows_with_every_time(server, loaded, prompts):
    [zero] = loaded.tokenizer("0", add_special_tokens=False)["input_ids"]
    how = {"logit_bias": {str(zero): 100}, "ignore_eos": True, "max_tokens": 90}
    assert text_of(server, prompts[0], presence_penalty=2, **how) == "0" * 90
    assert text_of(server, prompts[0], frequency_penalty=2, **how).count("0") < 90


def test_every_field_reaches_its_sampler():
    asked = {"presence_penalty": 0.5, "frequency_penalty": -1.5, "repetition_penalty": 1.2}
    asked |= {"top_k": 7, "min_p": 0.1, "top_p": 0.9, "temperature": 0.5, "seed": 3, "logit_bias": {"9": -3}}
    request = CompletionRequest(model="m", prompt="x", **asked)
    [first, second] = samplers(request, 2, 10)
    assert first == Adjusted(Nucleus(0.5, 0.9, 3, 7, 0.1), 1.2, 0.5, -1.5, ((9, -3.0),))
    assert first.inner.seed != second.inner.seed
    assert samplers(CompletionRequest(model="m", prompt="x", temperature=0), 2, 10) == [greedy, greedy]


def test_cuts_leave_only_what_they_say(server, prompts):
    greedy = text_of(server, prompts[0])
    hot = {"temperature": 2.0, "seed": 5}
    assert text_of(server, prompts[0], **hot, top_k=1) == greedy
    assert text_of(server, prompts[0], **hot, min_p=1.0) == greedy
    assert text_of(server, prompts[0], **hot, top_k=40) == text_of(server, prompts[0], **hot, top_k=40)
    assert text_of(server, prompts[0], **hot, top_k=-1) == text_of(server, prompts[0], **hot) != greedy


@pytest.mark.parametrize("action", ["restore", "rollback"])
def test_a_request_chooses_its_operating_point_whatever_shares_the_batch(
    serving, offline, guards, prompts, action
):
    points = {"conservative": NEVER, "balanced": guards["at once"].point, "aggressive": AT_ONCE}
    with_points = serving(guard=guards["at once"], points=points, action=action)
    client = with_points.client()
    [wanted] = guards["at once"].generate(
        *offline, prompts[:1], press=SnapKVPress(0.5, window_size=16), action=action, max_new_tokens=24
    )
    told = {}
    for name in (None, *points):
        how = {"extra_body": {"kv": {"point": name}}} if name else {}
        answer = client.chat.completions.create(
            messages=[{"role": "user", "content": prompts[0]}], **SEEN, **how
        )
        told[name] = answer.model_extra["kvguard"]
        if name in (None, "balanced"):
            assert answer.choices[0].message.content == wanted.text
    assert told[None] == told["balanced"]
    assert [told[name]["point"] for name in points] == list(points)
    assert told["conservative"]["alarms"] == 0 < told["aggressive"]["alarms"]
    assert told["conservative"]["states"]["safe"] == 0 < told["aggressive"]["states"]["safe"]
