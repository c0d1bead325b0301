import numpy as np
import pytest
import torch

from kvguard.engine.columns import SIGNALS
from kvguard.engine.signals import N_SIGNALS, by_kernels, signals


def independent(logits: np.ndarray, chosen: int) -> list[float]:
    """The same numbers for one row, in float64 NumPy, written from the definitions."""
    x = logits.astype(np.float64)
    logp = x - x.max() - np.log(np.exp(x - x.max()).sum())
    p = np.exp(logp)
    order = np.argsort(-logp, kind="stable")
    rest = np.delete(x, order[0])
    q = np.exp(rest - rest.max())
    q /= q.sum()
    top = logp[order[:20]]
    return [
        -(p[p > 0] * logp[p > 0]).sum(),
        np.exp(top[0]),
        np.exp(top[:5]).sum(),
        *top,
        -(q[q > 0] * np.log(q[q > 0])).sum(),
        logp.mean(),
        float((logp > logp[chosen]).sum()),
    ]


WAYS = [signals, by_kernels]  # that of CPUs, and that of accelerators


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vocabulary", [20, 37, 100, 512, 1021, 150_000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1e4])
def test_signals_equal_an_independent_float64_computation(way, vocabulary: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(vocabulary + int(scale))
    logits = (torch.rand(3, vocabulary, generator=generator) * 2 - 1) * scale
    chosen = torch.tensor([0, 7, vocabulary - 1])
    got = way(logits, chosen).double().numpy()
    want = np.array([independent(row.numpy(), int(c)) for row, c in zip(logits, chosen, strict=True)])
    assert np.isfinite(got).all()
    assert (np.abs(got - want) <= 1e-5 * np.maximum(1.0, np.abs(want))).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_signals_are_finite_float32_at_extreme_logits(way, dtype: torch.dtype) -> None:
    logits = torch.full((2, 512), -1e4, dtype=dtype)
    logits[0, 3] = 1e4
    logits[1, ::2] = 1e4
    got = way(logits.float() if way is by_kernels else logits, torch.tensor([3, 0]))
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    assert got[0, SIGNALS.index("top1_prob")] == 1.0
    assert got[0, SIGNALS.index("entropy")] == 0.0


def test_the_twenty_best_are_found_wherever_they_stand_and_however_often() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1021, generator=generator).sort().values for _ in range(2)]
    ties = torch.randint(0, 5, (6, 1021), generator=generator).float()
    logits = torch.stack([rows[0], rows[1].flip(0), *ties])
    got = signals(logits, logits.argmax(-1))[:, 3:23]
    assert torch.allclose(got, logits.log_softmax(-1).sort(descending=True).values[:, :20], atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 99])
def test_logits_that_are_no_numbers_leave_no_entropy(way, wrong: float, place: int) -> None:
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    logits[1, place] = wrong
    got = way(logits, torch.tensor([0, 0]))
    assert got[0].isfinite().all()
    assert got[1, SIGNALS.index("entropy")].isnan()


def test_masked_logits_are_as_if_they_were_far_down() -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    far = logits.clone()
    logits[0, 50:], far[0, 50:] = -np.inf, -1e4
    sharp = [i for i, name in enumerate(SIGNALS) if name != "avg_logp"]
    assert torch.equal(
        signals(logits, torch.tensor([3]))[:, sharp], signals(far, torch.tensor([3]))[:, sharp]
    )


@pytest.mark.parametrize("token", [-1, 64])
def test_a_token_outside_the_vocabulary_is_rejected(token: int) -> None:
    with pytest.raises(IndexError):
        signals(torch.randn(2, 64), torch.tensor([0, token]))


def test_signal_columns_are_the_stored_ones() -> None:
    assert signals(torch.randn(1, 64), torch.tensor([0])).shape[1] == len(SIGNALS) == N_SIGNALS
