import numpy as np
import torch

from kvguard.engine.cache import RaggedCache
from kvguard.engine.kept import KeptCache, smaller_form

H, D, LAYERS = 2, 4, 2


def kept(*lengths: int) -> KeptCache:
    return KeptCache([torch.randn(H, n, D) for n in lengths], [torch.randn(H, n, D) for n in lengths])


def cache_of(*rows: KeptCache) -> RaggedCache:
    cache = RaggedCache(rows[0].keys)
    cache.add(rows)
    return cache


def entries(cache: RaggedCache, row: int, layer: int) -> torch.Tensor:
    return cache.read(layer, row)[0]


def step(cache: RaggedCache) -> torch.Tensor:
    token = torch.randn(cache.n, H, 1, D)
    cache.begin()
    for layer in range(LAYERS):
        cache.update(token, token, layer)
    cache.advance()
    return token


def in_order(cache: RaggedCache, contents: list[KeptCache]) -> list[KeptCache]:
    """Bring slots into order; return what each holds now."""
    order = cache.order()
    return contents if order is None else [contents[slot] for slot in order]


def test_a_step_appends_each_row_at_its_own_length_in_every_layer() -> None:
    contents = [kept(3, 5), kept(7, 2), kept(300, 9)]
    cache = cache_of(*contents)
    contents = in_order(cache, contents)
    token = step(cache)
    for row, content in enumerate(contents):
        assert cache.lengths[:, row].tolist() == [n + 1 for n in content.lengths]
        for layer in range(LAYERS):
            expected = torch.cat([content.keys[layer], token[row]], dim=1)
            assert torch.equal(entries(cache, row, layer), expected)


def test_the_mask_hides_exactly_what_lies_beyond_a_row() -> None:
    cache = cache_of(kept(3, 5), kept(7, 2))
    cache.begin()
    for layer, lengths in enumerate([(3, 7), (5, 2)]):
        (segment,) = cache.layers[layer].segments
        assert segment.mask.shape == (2, 1, 1, max(lengths) + 1)
        visible = (segment.mask[:, 0, 0] == 0).sum(-1)
        assert visible.tolist() == [n + 1 for n in lengths]  # the kept entries and the token being written


def test_rows_of_very_different_lengths_attend_apart_each_to_its_own_length() -> None:
    cache = cache_of(kept(3, 4000), kept(4, 4000), kept(4000, 4), kept(3990, 3))
    cache.begin()
    assert [segment[:3] for segment in cache.layers[0].segments] == [(0, 2, 5), (2, 4, 4001)]
    assert [segment[:3] for segment in cache.layers[1].segments] == [(0, 2, 4001), (2, 4, 5)]
    assert [segment.mask.shape for segment in cache.layers[1].segments] == [(2, 1, 1, 4001), (2, 1, 1, 5)]


def test_rows_of_like_length_stand_together_with_all_they_hold() -> None:
    dead = torch.zeros(H, 4000, dtype=torch.bool)
    dead[1, 7] = True
    contents = [kept(n, n) for n in (4000, 30, 4000, 20, 3999, 10)]
    contents[2] = KeptCache(contents[2].keys, contents[2].values, dead=[dead, None])
    cache = cache_of(*contents)
    order = cache.order()
    assert order is not None
    assert order.tolist() == [0, 2, 4, 1, 3, 5]
    for _ in range(40):
        step(cache)
    assert cache.order() is None  # and then they are in order
    for row, source in enumerate(order):
        n = contents[source].lengths[0]
        for layer in range(LAYERS):
            assert torch.equal(entries(cache, row, layer)[:, :n], contents[source].keys[layer])
            assert torch.equal(cache.read(layer, row)[1][:, :n], contents[source].values[layer])
            assert cache.lengths[layer, row] == n + 40
    masked = [cache.dead(0, row) for row in range(6)]
    assert [None if d is None else d.nonzero().tolist() for d in masked] == [
        [],
        [[1, 7]],
        [],
        None,
        None,
        None,
    ]


def test_a_row_takes_the_room_of_what_it_holds_and_gives_it_back() -> None:
    entry = 2 * LAYERS * H * D * 4  # bytes
    cache = cache_of(*(kept(250, 250) for _ in range(8)))
    assert 8 * 250 * entry <= cache.nbytes <= 8 * 290 * entry
    cache.load(3, kept(2000, 2000))  # restored: its full cache and no copy more
    assert (7 * 250 + 2000) * entry <= cache.nbytes <= (8 * 290 + 2040) * entry
    cache.load(3, kept(250, 250))
    assert cache.nbytes <= 9 * 290 * entry
    cache.drop(range(1, 8))
    assert cache.nbytes <= 290 * entry
    cache.drop([0])
    assert cache.nbytes == 0


def test_a_shelf_grows_with_its_rows_and_loses_nothing() -> None:
    contents = [kept(5, 3), kept(9, 4)]
    cache = cache_of(*contents)
    tokens = [step(cache) for _ in range(100)]
    for row, content in enumerate(contents):
        for layer in range(LAYERS):
            expected = torch.cat([content.keys[layer], *(token[row] for token in tokens)], dim=1)
            assert torch.equal(entries(cache, row, layer), expected)


def test_a_row_that_was_evicted_from_leaves_its_shelf_and_its_room() -> None:
    contents = [kept(1000, 1000), kept(1000, 1000)]
    cache = cache_of(*contents)
    before = cache.nbytes
    for layer in range(LAYERS):
        cache.evict(np.array([0]), layer, torch.arange(0, 1000, 4)[None, None], np.array([250]))
    assert cache.order() is not None
    assert entries(cache, 1, 0).equal(contents[0].keys[0][:, ::4])
    assert entries(cache, 0, 1).equal(contents[1].keys[1])
    assert cache.nbytes < 0.7 * before


def test_a_replaced_row_keeps_nothing_of_its_predecessor() -> None:
    cache = cache_of(kept(7, 7))
    step(cache)
    fresh = kept(2, 3)
    cache.load(0, fresh)
    assert [entries(cache, 0, i).shape[1] for i in range(LAYERS)] == [2, 3]
    assert torch.equal(entries(cache, 0, 1), fresh.keys[1])


def test_rows_that_stay_keep_what_they_hold_when_others_leave() -> None:
    contents = [kept(3 + n, 5) for n in range(6)]
    cache = cache_of(*contents)
    stay = cache.drop([0, 3, 4])
    assert stay.tolist() == [1, 2, 5]
    contents = in_order(cache, [contents[row] for row in stay])
    for row, content in enumerate(contents):
        assert torch.equal(entries(cache, row, 0), content.keys[0])
        assert torch.equal(entries(cache, row, 1), content.keys[1])


def test_an_erased_row_leaves_no_nan_to_those_that_come_after() -> None:
    cache = cache_of(kept(3, 5), kept(4, 5))
    for index in range(LAYERS):
        for store in cache.read(index, 1):
            store.fill_(float("nan"))
    cache.drop([1], erase=[1])
    cache.add([kept(3, 3)])
    for shelf in cache.placement.shelves:
        assert all(store.isfinite().all() for store in (*shelf.keys, *shelf.values))


def test_eviction_keeps_each_heads_own_choice_and_leaves_other_layers_and_rows() -> None:
    a, b = kept(5, 5), kept(4, 4)
    cache = cache_of(a, b)
    keep = torch.tensor([[0, 2, 4], [1, 2, 3]])
    cache.evict(np.array([0]), 1, keep[None], np.array([3]))
    expected = torch.stack([a.keys[1][h, keep[h]] for h in range(H)])
    assert torch.equal(entries(cache, 0, 1), expected)
    assert torch.equal(entries(cache, 0, 0), a.keys[0])
    assert torch.equal(entries(cache, 1, 1), b.keys[1])
    step(cache)
    assert cache.lengths.tolist() == [[6, 5], [4, 5]]


def test_head_masked_entries_stay_hidden_from_their_head_alone_and_follow_their_row() -> None:
    dead = torch.zeros(H, 5, dtype=torch.bool)
    dead[1, 2] = True
    masked = kept(5, 5)
    masked = KeptCache(masked.keys, masked.values, dead=[dead, None])
    assert masked.n_kept == 4.75
    cache = cache_of(kept(5, 5), masked)
    cache.begin()
    hidden = cache.layers[0].segments[0].mask[:, :, 0].isinf()
    assert hidden.nonzero().tolist() == [[1, 1, 2]]
    cache.drop([0])
    cache.add([kept(5, 5)])
    cache.begin()
    assert cache.layers[0].segments[0].mask[:, :, 0].isinf().nonzero().tolist() == [[0, 1, 2]]
    assert cache.live().tolist() == [4.75, 5]


def test_a_prompt_s_caches_wait_in_the_smaller_form() -> None:
    full = kept(100, 100)

    def of_ratio(n: int) -> KeptCache:
        indices = [torch.stack([torch.randperm(100)[:n] for _ in range(H)]).int() for _ in range(LAYERS)]
        return KeptCache(full.keys, full.values, indices)

    few, many = {"a": of_ratio(25), "b": of_ratio(50)}, {"a": of_ratio(50), "b": of_ratio(75)}
    for name, cache in smaller_form(few).items():
        assert cache.keys[0].shape[1] == few[name].lengths[0]
        assert all(
            torch.equal(a, b) for a, b in zip(cache.positions or [], few[name].indices or [], strict=True)
        )
        for index in range(LAYERS):
            for mine, theirs in zip(cache.layer(index), few[name].layer(index), strict=True):
                assert torch.equal(mine, theirs)
    assert all(cache.keys is full.keys for cache in smaller_form(many).values())
    assert all(cache.keys is full.keys for cache in smaller_form({**few, "none": full}).values())
