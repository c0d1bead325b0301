"""Log-probabilities are those of the model, in OpenAI's shapes, whole and streamed, of texts and prompts."""

import httpx
import pytest
import torch
from transformers import DynamicCache

from kvguard.engine.prefill import full_pass
from kvguard.serve import logprobs as logprobs_module
from kvguard.serve.logprobs import PromptReader
from tiny import build

GREEDY = {"model": "reference", "temperature": 0}
PLAIN = {"extra_body": {"kv": {"compressor": "none", "guard": False}}}  # as the model alone would write


@pytest.fixture(scope="module")
def asked(offline, prompts):
    """A prompt as text and as ids."""
    return prompts[0], offline[1](prompts[0])["input_ids"]


@pytest.fixture(scope="module")
def raw(offline):
    """The model's own log-probabilities after each token of a sequence. [T, V]"""

    def of(ids):
        with torch.inference_mode():
            return offline[0](torch.tensor([ids])).logits[0].float().log_softmax(-1)

    return of


def near(values):
    return pytest.approx(values, abs=1e-4)


def test_a_completion_has_the_log_probabilities_of_its_tokens(server, offline, asked, raw):
    text, ids = asked
    answer = server.client().completions.create(prompt=text, max_tokens=12, logprobs=3, **GREEDY, **PLAIN)
    choice, said = answer.choices[0], answer.choices[0].logprobs
    assert len(said.tokens) == answer.usage.completion_tokens
    own = offline[1]("".join(said.tokens), add_special_tokens=False)["input_ids"]
    wanted = raw([*ids, *own])[len(ids) - 1 : -1]
    assert said.token_logprobs == near(wanted.gather(1, torch.tensor(own)[:, None])[:, 0].tolist())
    for place, (top, row) in enumerate(zip(said.top_logprobs, wanted, strict=True)):
        assert sorted(top.values(), reverse=True) == near(row.topk(3).values.tolist())
        assert max(top, key=top.get) == said.tokens[place]  # greedy
    for token, offset in zip(said.tokens, said.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token


def test_a_chat_has_the_log_probabilities_of_its_tokens(server, prompts):
    how = {**GREEDY, "messages": [{"role": "user", "content": prompts[0]}], "max_tokens": 12}
    choice = server.client().chat.completions.create(logprobs=True, top_logprobs=2, **how).choices[0]
    content = choice.logprobs.content
    assert "".join(one.token for one in content) == choice.message.content
    assert b"".join(bytes(one.bytes) for one in content).decode() == choice.message.content
    for one in content:
        assert [top.logprob for top in one.top_logprobs] == sorted(top.logprob for top in one.top_logprobs)[
            ::-1
        ]
        assert len(one.top_logprobs) == 2
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, one.top_logprobs[0].logprob)
    bare = server.client().chat.completions.create(logprobs=True, **how).choices[0]
    assert [one.logprob for one in bare.logprobs.content] == [one.logprob for one in content]
    assert all(one.top_logprobs == [] for one in bare.logprobs.content)
    silent = server.client().chat.completions.create(**how).choices[0]
    assert silent.logprobs is None
    assert silent.message == choice.message


def test_a_sampled_token_is_told_beside_the_likeliest(server):
    how = {"model": "reference", "prompt": "Flour " * 24, "max_tokens": 30, "temperature": 2.0, "seed": 1}
    said = server.client().completions.create(logprobs=1, **how).choices[0].logprobs
    assert all(token in top for token, top in zip(said.tokens, said.top_logprobs, strict=True))
    assert {len(top) for top in said.top_logprobs} == {1, 2}
    alone = server.client().completions.create(logprobs=0, **how).choices[0].logprobs
    assert alone.top_logprobs == [
        {token: logprob} for token, logprob in zip(said.tokens, said.token_logprobs, strict=True)
    ]


def test_they_are_raw_whatever_is_penalised(server, asked, raw, offline):
    text, ids = asked
    [seven] = offline[1]("7", add_special_tokens=False)["input_ids"]
    answer = server.client().completions.create(
        prompt=text, max_tokens=2, logprobs=1, logit_bias={str(seven): 100}, **GREEDY, **PLAIN
    )
    said = answer.choices[0].logprobs
    assert said.tokens == ["7", "7"]
    wanted = raw([*ids, seven])[-2:]
    assert said.token_logprobs == near(wanted[:, seven].tolist())
    assert [max(top.values()) for top in said.top_logprobs] == near(wanted.amax(-1).tolist())


@pytest.mark.parametrize("compressor", ["none", "knorm"])
@pytest.mark.parametrize("most", [0, 1, 5])
def test_echo_tells_the_prompts_from_the_full_pass(server, asked, raw, most, compressor):
    text, ids = asked
    ratio = 0.0 if compressor == "none" else 0.75
    answer = httpx.post(
        f"{server.base}/v1/completions",
        json={**GREEDY, "prompt": ids, "max_tokens": most, "echo": True, "logprobs": 1, "seed": 1234}
        | {"kv": {"compressor": compressor, "ratio": ratio}},
        timeout=60,
    ).json()
    [choice] = answer["choices"]
    said = choice["logprobs"]
    assert choice["text"].startswith(text)
    assert (choice["text"] == text) == (most == 0)
    assert answer["usage"]["completion_tokens"] == most
    assert [len(column) for column in said.values()] == [len(ids) + most] * 4
    assert said["token_logprobs"][0] is said["top_logprobs"][0] is None
    rows = raw(ids)[:-1]
    wanted = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert said["token_logprobs"][1 : len(ids)] == near(wanted.tolist())
    assert [max(top.values()) for top in said["top_logprobs"][1 : len(ids)]] == near(rows.amax(-1).tolist())
    assert "".join(said["tokens"]) == choice["text"]
    for token, offset in zip(said["tokens"], said["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(token)] == token


def test_a_prompt_is_read_in_pieces_that_make_no_difference(server, asked, monkeypatch):
    how = {"prompt": [asked[1], asked[1][:9], asked[1][:1]], "max_tokens": 1, "echo": True, "logprobs": 2}
    whole = server.client().completions.create(**how, **GREEDY)
    sizes, head = [], logprobs_module._head

    def counted(model, states):
        sizes.append(len(states))
        return head(model, states)

    monkeypatch.setattr(logprobs_module, "_head", counted)
    monkeypatch.setattr(logprobs_module, "_LOGITS", 7 * 1024)  # 7 tokens of the vocabulary
    pieces = server.client().completions.create(**how, **GREEDY)
    assert max(sizes) == 7
    for one, other in zip(whole.choices, pieces.choices, strict=True):
        assert one.text == other.text
        assert one.logprobs.tokens == other.logprobs.tokens
        assert one.logprobs.token_logprobs[1:] == near(other.logprobs.token_logprobs[1:])


@pytest.mark.parametrize("how", [{}, {"echo": True}, {"echo": True, "max_tokens": 0}])
def test_a_stream_tells_what_the_whole_answer_tells(server, asked, how):
    how = {**GREEDY, "prompt": [asked[0], "Two and two"], "max_tokens": 9, "logprobs": 2, "n": 2, **how}
    whole = server.client().completions.create(**how)
    texts, said = [""] * 4, [{} for _ in range(4)]
    for chunk in server.client().completions.create(stream=True, **how):
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
            said[choice.index].setdefault(name, []).extend(values)
    assert texts == [choice.text for choice in whole.choices]
    assert said == [choice.logprobs.model_dump() for choice in whole.choices]


@pytest.mark.parametrize("action", ["restore", "rollback", "restart"])
def test_a_rewound_text_has_those_of_the_tokens_that_it_ends_with(serving, guards, prompts, action):
    late = serving(guard=guards["late"], action=action)
    how = {**GREEDY, "messages": [{"role": "user", "content": prompts[0]}], "max_tokens": 40}
    whole = late.client().chat.completions.create(logprobs=True, top_logprobs=1, **how)
    told = whole.model_extra["kvguard"]
    assert told["restores"] + told["rewinds"] > 0
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    assert "".join(one.token for one in content) == whole.choices[0].message.content
    assert all(one.token == one.top_logprobs[0].token for one in content)
    streamed = []
    for chunk in late.client().chat.completions.create(logprobs=True, top_logprobs=1, stream=True, **how):
        streamed += (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else None) or []
    if action == "restore":
        assert streamed == content
    else:  # what was sent may have come from before the restore in a rewind's place
        assert len(streamed) > 30


def test_echo_without_log_probabilities_is_the_prompt_and_its_text(server, asked):
    how = {**GREEDY, "max_tokens": 6}
    client = server.client()
    alone = client.completions.create(prompt=asked[0], **how).choices[0]
    echoed = client.completions.create(prompt=asked[0], echo=True, **how).choices[0]
    assert echoed.text == asked[0] + alone.text
    assert echoed.logprobs is None
    nothing = client.completions.create(prompt=asked[0], echo=True, **{**how, "max_tokens": 0})
    assert nothing.choices[0].text == asked[0]
    assert nothing.choices[0].finish_reason == "length"
    assert nothing.usage.completion_tokens == 0


def test_what_is_not_asked_for_is_not_computed(server, prompts, monkeypatch):
    def unexpected(*_):
        raise AssertionError

    monkeypatch.setattr(logprobs_module, "_head", unexpected)
    monkeypatch.setattr("kvguard.serve.scheduler.read", unexpected)
    answer = server.client().completions.create(prompt=prompts[0], max_tokens=4, **GREEDY)
    assert answer.usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("llama", {}), ("qwen2", {}), ("gemma3", {}), ("gemma3", {"final_logit_softcapping": 2.0})],
)
def test_any_model_s_own_head_is_read(architecture, changes):
    model, ids = build(architecture, **changes), torch.arange(60) % 50
    whole = PromptReader(model, ids, 2)
    with whole:
        full_pass(model, ids)
    cut = PromptReader(model, ids, 2)
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        for piece in ids.split(25):
            model(input_ids=piece[None])  # as the decoding of others between two pieces
            with cut:
                model(input_ids=piece[None], past_key_values=cache, logits_to_keep=1)
        wanted = model(input_ids=ids[None]).logits[0].log_softmax(-1)[:-1]
    own = wanted.gather(1, ids[1:, None])[:, 0].tolist()
    for reader in (whole, cut):
        assert [one.token for one in reader.said] == ids.tolist()
        assert [one.logprob for one in reader.said[1:]] == near(own)
        assert [one.top[1][1] for one in reader.said[1:]] == near(wanted.topk(2).values[:, 1].tolist())
