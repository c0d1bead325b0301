"""The official client, sync and async, drives every endpoint and parses every answer; so does LangChain."""

import asyncio

import httpx
import pytest

from kvguard.serve.response_models import ChatCompletion, Completion, ModelList, Telemetry

TEXT = {
    "model": "reference",
    "prompt": "Two and two make what? " * 3,
    "max_tokens": 5,
    "temperature": 0.5,
    "seed": 3,
}
CHAT = {"model": "reference", "messages": [{"role": "user", "content": "Two and two?"}], "seed": 3}
DRAWN = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"50": -1}, "top_p": 0.9, "n": 2}
OWN = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True, "kv": {"ratio": 0.25}}
COMPLETION = {**TEXT, **DRAWN, "logprobs": 2, "echo": True, "stop": ["zz"], "user": "me", "extra_body": OWN}
ANSWER = {**CHAT, **DRAWN, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 5, "extra_body": OWN}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def test_the_official_client_drives_every_endpoint_with_every_field(server):
    client = server.client()
    [model] = client.models.list().data
    assert client.models.retrieve(model.id) == model
    whole = client.completions.create(**COMPLETION)
    assert [choice.logprobs.text_offset[0] for choice in whole.choices] == [0, 0]
    texts = ["", ""]
    for chunk in client.completions.create(**COMPLETION, **STREAM):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert chunk.usage == whole.usage
    answer = client.chat.completions.create(**ANSWER)
    assert all(len(choice.logprobs.content) == 5 for choice in answer.choices)
    with client.chat.completions.stream(**ANSWER, stream_options={"include_usage": True}) as stream:
        stream.until_done()
        final = stream.current_completion_snapshot  # the final one is not given out where length ended it
    assert [choice.message.content for choice in final.choices] == [
        choice.message.content for choice in answer.choices
    ]
    assert [choice.logprobs for choice in final.choices] == [choice.logprobs for choice in answer.choices]
    assert final.usage == answer.usage


def test_so_does_the_asynchronous_one(server):
    async def all_of_them():
        async with server.asynchronous() as client:
            whole, answer, models = await asyncio.gather(
                client.completions.create(**COMPLETION),
                client.chat.completions.create(**ANSWER),
                client.models.list(),
            )
            text = [""] * 2
            async for chunk in await client.completions.create(**COMPLETION, **STREAM):
                for choice in chunk.choices:
                    text[choice.index] += choice.text
            said = [""] * 2
            async for chunk in await client.chat.completions.create(**ANSWER, **STREAM):
                for choice in chunk.choices:
                    said[choice.index] += choice.delta.content or ""
            return whole, answer, models, text, said

    whole, answer, models, text, said = asyncio.run(all_of_them())
    assert models.data[0].id == "reference"
    assert text == [choice.text for choice in whole.choices]
    assert said == [choice.message.content for choice in answer.choices]


def test_answers_are_what_the_schema_says(server):
    def asked(path, body):
        return httpx.post(f"{server.base}/v1/{path}", json=body, timeout=60).json()

    completion = {**COMPLETION, **COMPLETION["extra_body"]}
    chat = {**ANSWER, **ANSWER["extra_body"]}
    for body in (completion, chat):
        del body["extra_body"]
    found = Completion.model_validate(asked("completions", completion), strict=True)
    assert found.choices[0].logprobs.token_logprobs[0] is None
    ChatCompletion.model_validate(asked("chat/completions", chat), strict=True)
    ModelList.model_validate(httpx.get(f"{server.base}/v1/models").json(), strict=True)
    told = asked("completions", TEXT)["kvguard"]
    assert set(told) == set(Telemetry.model_fields)


def test_langchain_s_chat_speaks_to_it(server):
    langchain = pytest.importorskip("langchain_openai", reason="pip install langchain-openai to try it")
    how = {"model": "reference", "base_url": f"{server.base}/v1", "api_key": "none", "max_retries": 0}
    chat = langchain.ChatOpenAI(**how, temperature=0, max_tokens=8, logprobs=True)
    answer = chat.invoke("Two and two?")
    wanted = server.client().chat.completions.create(**{**CHAT, "temperature": 0, "max_tokens": 8}).choices[0]
    assert answer.content == wanted.message.content
    assert answer.usage_metadata["output_tokens"] == len(answer.response_metadata["logprobs"]["content"])
    assert "".join(piece.content for piece in chat.stream("Two and two?")) == answer.content
    assert chat.batch(["Two and two?"] * 2)[1].content == answer.content
