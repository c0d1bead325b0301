"""The n texts of a prompt share one prefill, and are what they would be alone."""

import pytest

from kvguard.serve import scheduler as scheduler_module


@pytest.fixture
def prefills(monkeypatch):
    """The lengths of the prompts that are prefilled."""
    lengths, Prefilling = [], scheduler_module.Prefilling

    def counted(model, ids, *rest):
        lengths.append(len(ids))
        return Prefilling(model, ids, *rest)

    monkeypatch.setattr(scheduler_module, "Prefilling", counted)
    return lengths


HOW = {"model": "reference", "temperature": 1.5, "seed": 5, "max_tokens": 12}
PROMPTS = [list(range(20, 140)), list(range(20, 140)), list(range(30, 90))]


@pytest.mark.parametrize("kv", [{}, {"compressor": "none"}, {"compressor": "knorm", "ratio": 0.75}])
def test_one_prefill_serves_the_texts_of_a_prompt(server, prefills, kv):
    client = server.client()
    together = client.completions.create(prompt=PROMPTS, n=4, **HOW, extra_body={"kv": kv})
    assert prefills == [120, 120, 60]  # of each prompt, be they alike
    assert len({choice.text for choice in together.choices}) > 3
    again = client.completions.create(prompt=PROMPTS, n=4, **HOW, extra_body={"kv": kv})
    assert [choice.text for choice in again.choices] == [choice.text for choice in together.choices]
    alone = client.completions.create(prompt=PROMPTS[0], **HOW, extra_body={"kv": kv})
    assert alone.choices[0].text == together.choices[0].text


def test_greedy_texts_of_a_prompt_are_one(server, prefills):
    answer = server.client().completions.create(
        prompt=PROMPTS[0], n=3, **{**HOW, "temperature": 0}, logprobs=1
    )
    assert prefills == [120]
    first, *others = answer.choices
    assert all(other.text == first.text and other.logprobs == first.logprobs for other in others)


@pytest.mark.parametrize("limits", [{"rows": 2}, {"kv_bytes": 2}])
def test_texts_that_find_no_room_come_later(serving, prefills, limits):
    if "kv_bytes" in limits:  # of two texts, restored
        entry = serving(limits={"rows": 1}).scheduler.room.bytes_per_entry
        limits = {"kv_bytes": int(2.5 * (120 + 12) * entry)}
    tight = serving(limits=limits, action="none")
    seen, turn = [], tight.scheduler._turn

    def watched():
        turn()
        seen.append((len(tight.scheduler._rows), tight.scheduler.room.left))

    tight.scheduler._turn = watched
    wanted = serving().client().completions.create(prompt=PROMPTS[0], n=5, **HOW)
    prefills.clear()
    answer = tight.client().completions.create(prompt=PROMPTS[0], n=5, **HOW)
    assert [choice.text for choice in answer.choices] == [choice.text for choice in wanted.choices]
    assert 1 < len(prefills) < 5
    assert all(left >= 0 for _, left in seen)
    if "rows" in limits:
        assert max(rows for rows, _ in seen) == 2
    assert tight.idle()
    assert tight.scheduler.room.taken == 0
