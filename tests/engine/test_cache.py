import numpy as np
import pytest
import torch

from kvguard.engine.cache import KeptCache, RaggedCache

H, D, LAYERS = 2, 4, 2


def kept(*lengths: int) -> KeptCache:
    return KeptCache([torch.randn(H, n, D) for n in lengths], [torch.randn(H, n, D) for n in lengths])


def cache_of(*rows: KeptCache, capacity: int = 12) -> RaggedCache:
    cache = RaggedCache(LAYERS, len(rows), capacity, H, D, torch.float32)
    for row, content in enumerate(rows):
        cache.load(row, content)
    return cache


def entries(cache: RaggedCache, row: int, layer: int) -> torch.Tensor:
    return cache.layers[layer].keys[row, :, : cache.lengths[layer, row]]


def step(cache: RaggedCache, n: int) -> torch.Tensor:
    token = torch.randn(n, H, 1, D)
    cache.begin(n)
    for layer in range(LAYERS):
        cache.update(token, token, layer)
    cache.advance(n)
    return token


def test_a_step_appends_each_row_at_its_own_length_in_every_layer() -> None:
    a, b = kept(3, 5), kept(7, 2)
    cache = cache_of(a, b)
    token = step(cache, 2)
    assert cache.lengths.tolist() == [[4, 8], [6, 3]]
    for row, content in enumerate((a, b)):
        for layer in range(LAYERS):
            expected = torch.cat([content.keys[layer], token[row]], dim=1)
            assert torch.equal(entries(cache, row, layer), expected)


def test_the_mask_hides_exactly_what_lies_beyond_a_row() -> None:
    cache = cache_of(kept(3, 5), kept(7, 2))
    cache.begin(2)
    for layer, lengths in enumerate([(3, 7), (5, 2)]):
        (segment,) = cache.layers[layer].segments
        assert segment.mask.shape == (2, 1, 1, max(lengths) + 1)
        visible = (segment.mask[:, 0, 0] == 0).sum(-1)
        assert visible.tolist() == [n + 1 for n in lengths]  # the kept entries and the token being written


def test_rows_of_very_different_lengths_attend_apart_each_to_its_own_length() -> None:
    long, short = (3, 4, 4000, 3990), (4000, 4)
    cache = cache_of(*(kept(n, short[n > 100]) for n in long), capacity=4010)
    cache.begin(4)
    assert [segment[:3] for segment in cache.layers[0].segments] == [(0, 2, 5), (2, 4, 4001)]
    assert [segment[:3] for segment in cache.layers[1].segments] == [(0, 2, 4001), (2, 4, 5)]
    assert [segment.mask.shape for segment in cache.layers[1].segments] == [(2, 1, 1, 4001), (2, 1, 1, 5)]


def test_rows_of_like_length_are_brought_together_with_all_they_hold() -> None:
    dead = torch.zeros(H, 4000, dtype=torch.bool)
    dead[1, 7] = True
    contents = [kept(n, n) for n in (4000, 30, 4000, 20, 3999, 10)]
    contents[2] = KeptCache(contents[2].keys, contents[2].values, dead=[dead, None])
    cache = cache_of(*contents, capacity=4100)
    orders = []
    for _ in range(40):
        orders.append(cache.arrange(6))
        step(cache, 6)
    moved = [order for order in orders if order is not None]
    assert len(moved) == 1  # and then they are in order
    order = moved[0]
    assert sorted(order[:3]) == [0, 2, 4]
    for row, source in enumerate(order):
        n = contents[source].keys[0].shape[1]
        for layer in range(LAYERS):
            assert torch.equal(entries(cache, row, layer)[:, :n], contents[source].keys[layer])
            assert torch.equal(cache.layers[layer].values[row, :, :n], contents[source].values[layer])
            assert cache.lengths[layer, row] == n + 40
    assert cache.layers[0].dead is not None
    assert cache.layers[0].dead.nonzero().tolist() == [[list(order).index(2), 1, 7]]


def test_a_replaced_row_keeps_nothing_of_its_predecessor() -> None:
    cache = cache_of(kept(7, 7))
    step(cache, 1)
    fresh = kept(2, 3)
    cache.load(0, fresh)
    assert [entries(cache, 0, i).shape[1] for i in range(LAYERS)] == [2, 3]
    assert torch.equal(entries(cache, 0, 1), fresh.keys[1])


def test_a_moved_row_is_the_row() -> None:
    a, b = kept(3, 5), kept(7, 2)
    cache = cache_of(a, b)
    cache.move(1, 0)
    assert torch.equal(entries(cache, 0, 0), b.keys[0])
    assert torch.equal(entries(cache, 0, 1), b.keys[1])


def test_rewinding_undoes_steps_exactly() -> None:
    a = kept(3, 5)
    cache = cache_of(a)
    for _ in range(4):
        step(cache, 1)
    cache.truncate(0, 4)
    assert torch.equal(entries(cache, 0, 0), a.keys[0])
    assert torch.equal(entries(cache, 0, 1), a.keys[1])


def test_rewinding_past_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0 cannot be rewound by 4"):
        cache_of(kept(3, 5)).truncate(0, 4)


def test_eviction_keeps_each_heads_own_choice_and_leaves_other_layers_and_rows() -> None:
    a, b = kept(5, 5), kept(4, 4)
    cache = cache_of(a, b)
    keep = torch.tensor([[0, 2, 4], [1, 2, 3]])
    cache.evict(np.array([0]), 1, keep[None], np.array([3]))
    expected = torch.stack([a.keys[1][h, keep[h]] for h in range(H)])
    assert torch.equal(entries(cache, 0, 1), expected)
    assert torch.equal(entries(cache, 0, 0), a.keys[0])
    assert torch.equal(entries(cache, 1, 1), b.keys[1])
    step(cache, 2)
    assert cache.lengths.tolist() == [[6, 5], [4, 5]]


def test_head_masked_entries_stay_hidden_from_their_head_alone_and_follow_their_row() -> None:
    dead = torch.zeros(H, 5, dtype=torch.bool)
    dead[1, 2] = True
    masked = kept(5, 5)
    masked = KeptCache(masked.keys, masked.values, dead=[dead, None])
    assert masked.n_kept == 4.75
    cache = cache_of(kept(5, 5), masked)
    cache.begin(2)
    hidden = cache.layers[0].segments[0].mask[:, :, 0].isinf()
    assert hidden.nonzero().tolist() == [[1, 1, 2]]
    cache.move(1, 0)
    cache.load(1, kept(5, 5))
    cache.begin(2)
    assert cache.layers[0].segments[0].mask[:, :, 0].isinf().nonzero().tolist() == [[0, 1, 2]]
