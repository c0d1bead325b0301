"""The routes besides those that generate, as the official clients and the harnesses use them."""

import asyncio
import re

import httpx
import pytest

CHAT = {"model": "reference", "temperature": 0, "max_tokens": 8}
CHAT |= {"messages": [{"role": "user", "content": "Two and two and three make what, all together?"}]}


def test_the_model_is_listed(server):
    client = server.client()
    [model] = client.models.list().data
    assert model.id == "reference"
    assert client.models.retrieve("reference") == model


def test_the_asynchronous_client_parses_everything(server):
    async def all_of_them():
        async with server.asynchronous() as client:
            models = [model.id async for model in client.models.list()]
            whole = await client.chat.completions.create(**CHAT)
            text = ""
            async for chunk in await client.chat.completions.create(**CHAT, stream=True):
                text += chunk.choices[0].delta.content or ""
            return models, whole.choices[0].message.content, text

    models, whole, text = asyncio.run(all_of_them())
    assert models == ["reference"]
    assert whole == text


@pytest.mark.parametrize(
    "text", ["Tom has 3 apples.", "ünïcode — 漢字 🙂", "<|assistant|> is text here", " two  spaces"]
)
def test_tokens_and_text_are_inverse(server, text):
    tokens = httpx.post(f"{server.base}/tokenize", json={"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    back = httpx.post(f"{server.base}/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert back == {"prompt": text}


def test_a_control_token_is_told_by_its_name_and_stays_text_in_a_text(server, loaded):
    def tokens(**asked):
        return httpx.post(f"{server.base}/tokenize", json=asked).json()["tokens"]

    eos = loaded.tokenizer.eos_token
    assert tokens(prompt=eos, add_special_tokens=False) == [loaded.tokenizer.eos_token_id]
    assert loaded.tokenizer.eos_token_id not in tokens(prompt=f"{eos} is text here")
    plain = tokens(prompt="Two and two", add_special_tokens=False)
    assert plain == loaded.tokenizer("Two and two", add_special_tokens=False)["input_ids"]
    assert tokens(prompt="Two and two") == loaded.tokenizer("Two and two")["input_ids"]


def test_a_tokenized_chat_is_the_prompt_that_is_generated_from(server):
    tokens = httpx.post(f"{server.base}/tokenize", json={"messages": CHAT["messages"]}).json()
    usage = server.client().chat.completions.create(**CHAT).usage
    assert tokens["count"] == usage.prompt_tokens


def test_harnesses_find_what_they_probe(server, loaded):
    info = httpx.get(f"{server.base}/tokenizer_info").json()
    assert info["eos_token"] == loaded.tokenizer.eos_token
    assert httpx.get(f"{server.base}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.base}/version").json()["version"]


def test_a_request_id_is_given_back(server):
    assert (
        httpx.get(f"{server.base}/health", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    )
    made = [httpx.get(f"{server.base}/health").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


def test_metrics_count_what_was_done(serving, guards):
    late = serving(guard=guards["late"])
    client = late.client()
    for stream in (False, True):
        answer = client.chat.completions.create(**{**CHAT, "max_tokens": 40}, stream=stream)
        if stream:
            list(answer)
    text = httpx.get(f"{late.base}/metrics").text

    def value(name):
        return float(re.search(rf"^kvguard:{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)[1])

    assert value("num_requests_running") == value("num_requests_waiting") == value("kv_bytes") == 0
    assert value("time_to_first_token_seconds_count") == value("e2e_request_latency_seconds_count") == 2
    assert value("generation_tokens_total") == value("inter_token_latency_seconds_count") + 2
    assert value("alarms_total") >= value("restores_total") == 2
    assert value("rewinds_total") == 0
    assert value("hazard_max_count") == value("kv_saved_count") == 2
    assert re.search(
        r'^kvguard:request_success_total{finished_reason="\w+",model_name="reference"} 2', text, re.M
    )
