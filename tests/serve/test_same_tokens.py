"""A server answers what the library generates for the same prompt alone, whatever shares the batch."""

import asyncio

import pytest
from kvpress import KnormPress, SnapKVPress

from kvguard import Guard

NEW = 40


def snapkv():
    return SnapKVPress(0.5, window_size=16)


def message(prompt):
    return [{"role": "user", "content": prompt}]


def test_a_chat_is_the_generation_of_its_prompt(server, offline, guards, prompts):
    [wanted] = guards["calm"].generate(
        *offline, prompts[:1], press=snapkv(), action="restore", max_new_tokens=NEW
    )
    answer = server.client().chat.completions.create(
        model="reference", messages=message(prompts[0]), max_tokens=NEW, temperature=0
    )
    [choice] = answer.choices
    assert choice.message.content == wanted.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == ("length" if wanted.stop_reason == "length" else "stop")
    assert answer.usage.completion_tokens == len(wanted.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    told = answer.model_extra["kvguard"]
    assert told["compressor"] == "snapkv"
    assert told["kv_tokens"]["prompt"] == answer.usage.prompt_tokens
    assert told["kv_tokens"]["kept"] == pytest.approx(wanted.kv_tokens[0], abs=0.01)
    assert told["kv_tokens"]["peak"] == pytest.approx(wanted.kv_tokens.max(), abs=0.01)
    assert told["saved"] == pytest.approx(wanted.kv_saved, abs=1e-4)
    assert told["hazard_max"] == pytest.approx(float(wanted.hazard.max()), abs=1e-5)
    assert sum(told["states"].values()) == len(wanted.token_ids)


def test_requests_that_join_and_leave_do_not_change_one_another(server, offline, guards, prompts):
    kinds = [  # (kv, max_tokens, press)
        ({}, 40, snapkv),
        ({"compressor": "none"}, 17, lambda: None),
        ({"compressor": "knorm", "ratio": 0.75}, 29, lambda: KnormPress(0.75)),
        ({"ratio": 0.75}, 8, lambda: SnapKVPress(0.75, window_size=16)),
    ]

    async def ask(client, number):
        await asyncio.sleep(0.02 * (number % 5))
        kv, most, _ = kinds[number % 4]
        answer = await client.chat.completions.create(
            model="reference",
            messages=message(prompts[number % 8]),
            max_completion_tokens=most,
            temperature=0,
            extra_body={"kv": kv},
        )
        return answer.choices[0].message.content

    async def all_of_them():
        async with server.asynchronous() as client:
            return await asyncio.gather(*(ask(client, number) for number in range(12)))

    texts = asyncio.run(all_of_them())
    for number, text in enumerate(texts):
        _, most, press = kinds[number % 4]
        [wanted] = guards["calm"].generate(
            *offline, [prompts[number % 8]], press=press(), action="restore", max_new_tokens=most
        )
        assert text == wanted.text, number


@pytest.mark.parametrize("action", ["restore", "rollback", "restart"])
def test_a_guard_acts_as_in_the_library(serving, offline, guards, prompts, action):
    late = serving(guard=guards["late"])
    client = late.client()
    for prompt in prompts[:2]:
        [wanted] = guards["late"].generate(
            *offline, [prompt], press=snapkv(), action=action, max_new_tokens=NEW
        )
        answer = client.chat.completions.create(
            model="reference",
            messages=message(prompt),
            max_tokens=NEW,
            temperature=0,
            extra_body={"kv": {"action": action}},
        )
        assert answer.choices[0].message.content == wanted.text
        told = answer.model_extra["kvguard"]
        assert wanted.actions
        assert told["alarms"] >= len(wanted.actions)
        assert told["restores"] + told["rewinds"] == len(wanted.actions)
        assert told["rewinds_withheld"] == 0
        assert told["kv_tokens"]["peak"] >= told["kv_tokens"]["prompt"]


def test_prompts_of_every_form_are_one_prompt(server, offline, guards, prompts):
    client = server.client()
    ids = offline[1](prompts[0])["input_ids"]
    [wanted] = guards["calm"].generate(*offline, [ids], press=snapkv(), action="restore", max_new_tokens=NEW)
    for prompt in (prompts[0], [prompts[0]], ids, [ids]):
        answer = client.completions.create(model="reference", prompt=prompt, max_tokens=NEW, temperature=0)
        assert answer.choices[0].text == wanted.text
        assert answer.usage.prompt_tokens == len(ids)
    assert len(client.completions.create(model="reference", prompt=ids, seed=1).choices[0].text) >= 0


def test_choices_stand_in_order_prompt_by_prompt(server, prompts):
    client = server.client()
    how = {"model": "reference", "max_tokens": 12, "temperature": 0}
    alone = [client.completions.create(prompt=prompt, **how).choices[0].text for prompt in prompts[:3]]
    together = client.completions.create(prompt=prompts[:3], n=2, **how)
    assert [choice.index for choice in together.choices] == list(range(6))
    assert [choice.text for choice in together.choices] == [text for text in alone for _ in range(2)]
    assert together.usage.completion_tokens >= 6
    assert all(choice.model_extra["kvguard"]["saved"] > 0 for choice in together.choices)


def test_chance_depends_on_the_seed_only(server, offline, guards):
    ids = offline[1]("Flour " * 24)["input_ids"]  # nothing that this model could be sure about

    async def sample(client, seed, delay):
        await asyncio.sleep(delay)
        answer = await client.completions.create(
            model="reference", prompt=ids, max_tokens=24, temperature=2.0, top_p=0.95, seed=seed, n=2
        )
        return [choice.text for choice in answer.choices]

    async def all_of_them():
        async with server.asynchronous() as client:
            seeds = [5, 6, 5, 7, 5, 6]
            found = await asyncio.gather(*(sample(client, s, 0.03 * i) for i, s in enumerate(seeds)))
            return found, await sample(client, 5, 0)

    texts, alone = asyncio.run(all_of_them())
    assert texts[0] == texts[2] == texts[4] == alone
    assert texts[1] == texts[5]
    assert len({text for pair in texts for text in pair}) == 6  # three seeds, two choices
    [wanted] = guards["calm"].generate(
        *offline, [ids], press=snapkv(), max_new_tokens=24, temperature=2.0, top_p=0.95, seed=5
    )
    assert alone[0] == wanted.text
    unseeded = {
        server.client().completions.create(model="reference", prompt=ids, temperature=2.0).choices[0].text
        for _ in range(4)
    }
    assert len(unseeded) > 1


def test_a_long_prompt_comes_in_pieces_between_the_steps_of_others(serving, offline, guards):
    piece, long = 64, [20 + i * i % 900 for i in range(1500)]
    pieces = serving(limits={"piece": piece})
    running, step = [], pieces.scheduler._fill

    def watched(filling):
        running.append((len(filling.ticket.ask.ids), len(pieces.scheduler._rows)))
        step(filling)

    pieces.scheduler._fill = watched

    async def both():
        async with pieces.asynchronous() as client:
            how = {"model": "reference", "temperature": 0, "extra_body": {"ignore_eos": True}}
            other = asyncio.create_task(
                client.completions.create(prompt=list(range(20, 80)), max_tokens=400, **how)
            )
            await asyncio.sleep(0.05)
            return await client.completions.create(prompt=long, max_tokens=12, **how), await other

    answer, other = asyncio.run(both())
    assert running.count((1500, 1)) == -(-1500 // piece)
    assert other.usage.completion_tokens == 400
    [wanted] = guards["calm"].generate(*offline, [long], press=snapkv(), max_new_tokens=12)
    assert answer.choices[0].text == wanted.text


def test_short_prompts_start_together_as_far_as_they_are_whole_in_one_piece(serving, offline, guards):
    piece, prompts = 150, [[20 + number + i % 90 for i in range(60)] for number in range(7)]
    together = serving(limits={"piece": piece})
    scheduler, turns = together.scheduler, []
    prefill, fill = scheduler._prefill, scheduler._fill

    def turn():
        turns.append(0)
        prefill()

    def watched(filling):
        fill(filling)
        turns[-1] += len(filling.ticket.ask.ids)

    scheduler._prefill, scheduler._fill = turn, watched
    answer = together.client().completions.create(
        model="reference", prompt=prompts, max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
    )
    assert [n for n in turns if n] == [120, 120, 120, 60]
    wanted = guards["calm"].generate(*offline, prompts, press=snapkv(), max_new_tokens=12)
    assert [choice.text for choice in answer.choices] == [text.text for text in wanted]


def test_without_a_guard_nothing_is_watched(serving, offline, prompts):
    plain = serving(guard=None, action="none")
    answer = plain.client().chat.completions.create(
        model="reference", messages=message(prompts[0]), max_tokens=20, temperature=0
    )
    told = answer.model_extra["kvguard"]
    assert told["states"] is told["hazard_max"] is told["alarms"] is None
    assert told["saved"] > 0.2
    guard = Guard.load("models/reference")
    [wanted] = guard.generate(*offline, prompts[:1], press=snapkv(), action="none", max_new_tokens=20)
    assert answer.choices[0].message.content == wanted.text


def test_a_prompt_too_short_for_its_press_is_not_compressed_and_says_so(server, offline, guards):
    ids = list(range(20, 36))  # as many as SnapKV's window
    [wanted] = guards["calm"].generate(*offline, [ids], max_new_tokens=12)
    answer = server.client().completions.create(model="reference", prompt=ids, max_tokens=12, temperature=0)
    assert answer.choices[0].text == wanted.text
    told = answer.model_extra["kvguard"]
    assert (told["compressor"], told["ratio"], told["saved"]) == ("none", 0.0, 0.0)
    assert told["kv_tokens"] == {"prompt": 16, "kept": 16.0, "peak": 16.0 + len(wanted.token_ids) - 1}
