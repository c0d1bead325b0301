"""A batch is an open population: rows come and go while it runs, each with its own terms and results."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_steps import COMPRESSED, HEADWISE, KNORM, NEW, rows_of
from transformers import PreTrainedModel

from kvguard.engine.batch import Batch
from kvguard.engine.loop import decode, decode_steps
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import build_press
from kvguard.engine.requests import Decoding, Finished, Follower, Reason, Request, Row
from kvguard.engine.sampling import Nucleus
from kvguard.sweep.settings import CompressorSpec

HOW = Decoding(NEW, [1])


def alone(model: PreTrainedModel, row: Row, how: Decoding = HOW) -> list[int]:
    got = decode(model, [row], how, batch_size=1)
    return got.token_ids[0, : got.lengths[0]].tolist()


def drain(batch: Batch) -> dict[int, Finished]:
    for _ in decode_steps(batch):
        pass
    return {done.row: done for done in batch.collect()}


@pytest.mark.parametrize("spec", [KNORM, HEADWISE], ids=["removed", "masked by head"])
def test_rows_that_join_under_way_change_no_token_of_others(
    model: PreTrainedModel, spec: CompressorSpec
) -> None:
    """Every third step a prompt is prefilled through its press, uncompressed and masked ones in turn."""
    rows = rows_of(model, spec, n=3)
    expected = [alone(model, row) for row in rows]
    batch = Batch(model, 4)
    for row in rows:
        batch.add(HOW.request(row))
    late: list[Row] = []
    for step in decode_steps(batch):
        if step.t.max() % 3 == 2 and len(late) < 5:
            ids = torch.randint(2, 258, (50 + 90 * len(late),), generator=torch.Generator().manual_seed(9))
            press = build_press(HEADWISE, 0.75) if len(late) % 2 else None
            done = prefill(model, ids, {COMPRESSED: press}, "sdpa")
            late.append(Row(ids, done.logits, done.kept[COMPRESSED]))
            batch.add(HOW.request(late[-1]))
    got = {done.row: done.token_ids.tolist() for done in batch.collect()}
    assert sorted(got) == list(range(8))
    assert [got[row] for row in range(3)] == expected
    assert [got[row] for row in range(3, 8)] == [alone(model, row) for row in late]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_without_signals_the_same_tokens_come_and_logits_that_are_no_numbers_end_their_row(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, poison: float
) -> None:
    feed = Batch.feed

    def poisoned(batch: Batch) -> None:
        feed(batch)
        batch.logits[: batch.n][(batch.row == 2) & (batch.t == 5)] = poison

    def run(reads: bool) -> dict[int, Finished]:
        batch = Batch(model, 4, reads=reads)
        for row in rows_of(model, n=4):
            batch.add(HOW.request(row))
        return drain(batch)

    monkeypatch.setattr(Batch, "feed", poisoned)
    read, unread = run(True), run(False)
    for row, done in read.items():
        assert unread[row].token_ids.tolist() == done.token_ids.tolist()
        assert unread[row].reason == done.reason
        assert np.isnan(unread[row].signals).all()
    assert read[2].reason == Reason.INVALID


def test_each_row_has_its_own_budget_end_tokens_sampler_and_stop_test(model: PreTrainedModel) -> None:
    rows = rows_of(model, n=5)
    plain = alone(model, rows[0], Decoding(NEW, []))
    others = [alone(model, row, Decoding(NEW, [])) for row in rows]
    sampler = Nucleus(1.0, 0.95, seed=3)

    class After(list[int]):
        """Ends a row at its fourth token."""

        def push(self, token_id: int) -> bool:
            self.append(token_id)
            return len(self) == 4

        def rewind(self, n_tokens: int) -> None:
            del self[n_tokens:]

    how = Decoding(NEW, [])
    requests = [
        replace(how.request(rows[0]), max_new_tokens=3),
        replace(how.request(rows[1]), eos_ids=(others[1][5],)),
        replace(how.request(rows[2]), sampler=sampler, key=7),
        replace(how.request(rows[3]), stop=After()),
        how.request(rows[4]),
    ]
    batch = Batch(model, 5)
    for request in requests:
        batch.add(request)
    got = drain(batch)
    assert got[0].token_ids.tolist() == plain[:3]
    assert got[1].token_ids.tolist() == others[1][: others[1].index(others[1][5]) + 1]
    assert got[3].token_ids.tolist() == others[3][:4]
    assert got[4].token_ids.tolist() == others[4]
    assert [got[row].stop_reason for row in range(5)] == ["length", "eos", "length", "stop", "length"]
    single = Batch(model, 1)
    for _ in range(3):
        single.add(requests[2])
    again = drain(single)
    assert [done.token_ids.tolist() for done in again.values()] == [got[2].token_ids.tolist()] * 3


def test_a_rewound_row_rewinds_its_stop_test_and_every_follower(model: PreTrainedModel) -> None:
    class Mirror(Follower):
        def __init__(self) -> None:
            self.seen: list[tuple[object, ...]] = []

        def open(self, seat: int, row: int, request: Request) -> None:
            self.seen.append(("open", seat, row))

        def restored(self, seat: int) -> None:
            self.seen.append(("restored", seat))

        def rewind(self, seat: int, n_tokens: int) -> None:
            self.seen.append(("rewind", seat, n_tokens))

        def close(self, seat: int, done: Finished) -> None:
            self.seen.append(("close", seat, done.row))

    class Pushed(list[int]):
        def push(self, token_id: int) -> bool:
            self.append(token_id)
            return False

        def rewind(self, n_tokens: int) -> None:
            del self[n_tokens:]

    stop, mirror = Pushed(), Mirror()
    batch = Batch(model, 1)
    batch.follow(mirror)
    batch.add(replace(Decoding(12, []).request(rows_of(model, n=1)[0]), stop=stop))
    for step in decode_steps(batch):
        if step.t[0] == 8 and batch.attempt[0] == 0:
            batch.restore([0], [3])
    (done,) = batch.collect()
    assert mirror.seen == [("open", 0, 0), ("restored", 0), ("rewind", 0, 3), ("close", 0, 0)]
    assert stop == done.token_ids.tolist()


def test_a_cancelled_row_leaves_at_once_with_what_it_has(model: PreTrainedModel) -> None:
    rows = rows_of(model, n=4)
    expected = [alone(model, row) for row in rows]
    batch = Batch(model, 2)
    for row in rows:
        batch.add(HOW.request(row))
    first: list[int] = []
    for step in decode_steps(batch):
        if not first and step.t[0] == 4:
            first = step.row.tolist()
            batch.cancel(first[0])
            batch.cancel(({0, 1, 2, 3} - set(first)).pop())
            batch.cancel(99)  # nobody
    got = {done.row: done for done in batch.collect()}
    cancelled = [row for row in got if got[row].reason is Reason.CANCELLED]
    assert len(cancelled) == 2
    assert got[first[0]].token_ids.tolist() == expected[first[0]][:5]
    assert got[(set(cancelled) - {first[0]}).pop()].token_ids.tolist() == []
    for row in {0, 1, 2, 3} - set(cancelled):
        assert got[row].token_ids.tolist() == expected[row]
    assert batch.requests == {}


@pytest.mark.parametrize("keep", [0, 2, 5])
def test_a_row_can_be_ended_with_fewer_tokens_and_the_others_go_on(model: PreTrainedModel, keep: int) -> None:
    class Seen(Follower):
        def __init__(self) -> None:
            self.rewound, self.closed = list[int](), list[int]()

        def rewind(self, seat: int, n_tokens: int) -> None:
            self.rewound.append(n_tokens)

        def close(self, seat: int, done: Finished) -> None:
            self.closed.append(done.row)

    rows = rows_of(model, n=4)
    expected = [alone(model, row) for row in rows]
    batch, seen = Batch(model, 2), Seen()
    batch.follow(seen)
    for row in rows:
        batch.add(HOW.request(row))
    ended = -1
    for step in decode_steps(batch):
        if ended < 0 and step.t[0] == 4:
            ended = int(step.row[0])
            batch.finish(0, keep, Reason.GUARD)
            assert batch.leaving[0]
    got = {done.row: done for done in batch.collect()}
    assert (got[ended].stop_reason, got[ended].ended) == ("guard", False)
    assert got[ended].token_ids.tolist() == expected[ended][:keep]
    assert len(got[ended].signals) == keep
    assert (seen.rewound, seen.closed[0]) == ([keep] * (keep < 5), ended)
    for row in {0, 1, 2, 3} - {ended}:
        assert got[row].token_ids.tolist() == expected[row]
    assert batch.requests == {}
    assert batch.cache.nbytes == 0


@pytest.mark.parametrize("given", [True, False], ids=["its cache is given", "its cache is computed"])
def test_a_row_goes_on_from_tokens_that_were_generated_before(model: PreTrainedModel, given: bool) -> None:
    (prompt,) = (row.prompt_ids for row in rows_of(model, n=1))
    none = replace(COMPRESSED, compressor="none", ratio=0.0)
    start = prefill(model, prompt, {none: None}, "sdpa")
    whole = alone(model, Row(prompt, start.logits, start.kept[none]), Decoding(NEW, []))
    request = Decoding(NEW, []).resume(prompt, whole[:7])
    if given:
        done = prefill(model, torch.cat([prompt, torch.tensor(whole[:7])]), {none: None}, "sdpa")
        request = replace(request, logits=done.logits, cache=done.kept[none])
    batch = Batch(model, 2)
    batch.add(request)
    (found,) = drain(batch).values()
    assert found.token_ids.tolist() == whole
    assert np.isnan(found.signals[:7]).all()
    assert np.isfinite(found.signals[7:]).all()


def test_a_row_lets_its_kept_cache_go_when_it_starts(model: PreTrainedModel) -> None:
    import weakref

    batch = Batch(model, 1)
    rows = rows_of(model, n=2)
    for row in rows:
        batch.add(HOW.request(row))
    waiting = weakref.ref(rows[0].cache), weakref.ref(rows[1].cache)
    del rows, row
    first = next(iter(decode_steps(batch))).row[0]
    assert [ref() is None for ref in waiting] == [first == 0, first == 1]


def test_results_leave_with_their_rows_and_room_does_not_grow_with_how_many_there_were(
    model: PreTrainedModel,
) -> None:
    batch = Batch(model, 2)
    rows = rows_of(model, n=2)
    for _ in range(8):
        for row in rows:
            batch.add(Decoding(5, []).request(row))
    seen = []
    for _ in decode_steps(batch):
        seen += [done.row for done in batch.collect()]
        assert batch._records.tokens.shape[0] <= 2
    seen += [done.row for done in batch.collect()]
    assert sorted(seen) == list(range(16))
    assert batch.cache.nbytes == 0


def test_a_batch_may_become_larger_while_it_runs(model: PreTrainedModel) -> None:
    rows = rows_of(model, n=6)
    expected = [alone(model, row) for row in rows]
    batch = Batch(model, 1)
    for row in rows:
        batch.add(HOW.request(row))
    most = 0
    for _ in decode_steps(batch):
        batch.size, most = 5, max(most, batch.n)
    assert most == 5
    got = {done.row: done.token_ids.tolist() for done in batch.collect()}
    assert [got[row] for row in range(6)] == expected
