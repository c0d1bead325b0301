"""The exactness gate: is a model's cache, cut and moved, what it is taken for?

Six checks against the model itself, run in one pass without a cache. They take reading and asking as
arguments, so that another implementation of the two can be held to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvguard.engine.layers import sliding_windows
from kvguard.engine.surgery.asking import Asked, answer_nll
from kvguard.engine.surgery.document_cache import DocumentCache, reposition, shift
from kvguard.engine.surgery.reading import Reading, read
from kvguard.engine.surgery.rope import Rope

Read = Callable[..., list[DocumentCache]]
Ask = Callable[..., list[Tensor]]
NLL, KEYS, COUNT = 1e-4, 1e-5, 0.0  # bounds in float32: nats, relative to the largest key, entries
_WIDEST = 64  # wider windows are narrowed while the gate runs: a text longer than them would take minutes


@dataclass(frozen=True)
class Check:
    """One check: its number in the list of six, what it says, and its largest error with the bound."""

    number: int
    says: str
    unit: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return self.error <= self.bound


@dataclass(frozen=True)
class GateReport:
    """What the gate found out about a model.

    Attributes
    ----------
    windows : tuple of int
        Sliding windows of the model, as checked.
    narrowed_from : int or None
        The model's own window, if it was narrowed for the checks.
    """

    model: str
    dtype: str
    checks: tuple[Check, ...]
    windows: tuple[int, ...]
    narrowed_from: int | None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def error(self, unit: str) -> float:
        """Return the largest error in a unit: ``nats``, ``relative`` or ``entries``."""
        return max(check.error for check in self.checks if check.unit == unit)


def gate(
    model: PreTrainedModel,
    *,
    bos: int | None,
    read: Read = read,
    answer_nll: Ask = answer_nll,
    seed: int = 0,
) -> GateReport:
    """Check that caches of a model are exact after being cut, moved and asked.

    Parameters
    ----------
    model : PreTrainedModel
        Any causal LM of transformers, in float32 for the bounds to hold.
    bos : int or None
        The token that opens its texts.
    read, answer_nll : callable
        The two phases, with the signatures of :func:`read` and :func:`answer_nll`.
    seed : int
        Of the token ids of the texts.

    Raises
    ------
    KvguardError
        If the model's keys cannot be moved at all.
    """
    Rope.of(model)
    with _narrowed(model) as before, torch.inference_mode():
        texts = _Texts.of(model, bos, seed)
        checks = [
            *_no_prefix(model, texts, read, answer_nll),
            *_moved_keys(model, texts, read),
            *_there_and_back(model, texts, read),
            *_no_look_ahead(model, texts, read, answer_nll),
            *_bos_and_positions(model, texts, read),
            *_windows(model, texts, read),
        ]
        windows = tuple(sorted({w for w in sliding_windows(model) if w is not None}))
    name = str(model.config.model_type)
    return GateReport(name, str(model.dtype).removeprefix("torch."), tuple(checks), windows, before)


@dataclass(frozen=True)
class _Texts:
    """Random texts: short ones, and one longer than a window."""

    bos: int | None
    documents: list[list[int]]
    prefixes: list[list[int]]
    asked: list[Asked]
    separator: list[int]

    @classmethod
    def of(cls, model: PreTrainedModel, bos: int | None, seed: int) -> _Texts:
        config = model.config.get_text_config()
        random = torch.Generator().manual_seed(seed)

        def ids(n: int) -> list[int]:
            return torch.randint(3, int(config.vocab_size), (n,), generator=random).tolist()

        window = max((w for w in sliding_windows(model) if w is not None), default=32)
        return cls(
            bos,
            [ids(n) for n in (5, 18, window - 7, window + 9)],
            [ids(n) for n in (11, 4, 9, 13)],
            [Asked(ids(n), ids(m)) for n, m in ((3, 4), (1, 1), (6, 7), (2, 3))],
            ids(2),
        )

    def readings(self, *, prefixed: bool) -> list[Reading]:
        if not prefixed:
            return [Reading(document) for document in self.documents]
        pairs = zip(self.documents, self.prefixes, strict=True)
        return [Reading(document, prefix, self.separator) for document, prefix in pairs]

    def opened(self, document: Sequence[int]) -> list[int]:
        return [*([] if self.bos is None else [self.bos]), *document]


def _no_prefix(model: PreTrainedModel, texts: _Texts, read: Read, answer_nll: Ask) -> Iterator[Check]:
    kept = read(model, texts.readings(prefixed=False), bos=texts.bos)
    two = answer_nll(model, kept, texts.asked)
    error = 0.0
    for document, asked, nll in zip(texts.documents, texts.asked, two, strict=True):
        text = [*texts.opened(document), *asked.context, *asked.answer]
        error = _worst(error, (nll - _one_pass(model, text, len(asked.answer))).abs())
    yield Check(1, "no prefix: two phases are one pass", "nats", error, NLL)


def _moved_keys(model: PreTrainedModel, texts: _Texts, read: Read) -> Iterator[Check]:
    first = 0.0
    kept = read(model, texts.readings(prefixed=True), bos=texts.bos)
    for document, cache in zip(texts.documents, kept, strict=True):
        keys = _computed(model, texts.opened(document))[0]
        first = _worst(first, _apart(cache.keys[0], _last(keys, cache, 0)))
    yield Check(2, "moved keys are those computed there, layer 0", "relative", first, KEYS)
    deep = 0.0
    kept = read(model, texts.readings(prefixed=True), bos=None, attention="isolated")
    for document, cache in zip(texts.documents, kept, strict=True):
        for layer, keys in enumerate(_computed(model, document)):
            deep = _worst(deep, _apart(cache.keys[layer], _last(keys, cache, layer)))
    yield Check(2, "... all layers, the prefix masked from the document", "relative", deep, KEYS)


def _there_and_back(model: PreTrainedModel, texts: _Texts, read: Read) -> Iterator[Check]:
    cache = read(model, texts.readings(prefixed=True)[1:2], bos=texts.bos)[0]
    still = reposition(model, cache, cache.positions, cache.end)
    yield Check(3, "a shift by zero changes nothing", "relative", _all_apart(still, cache), COUNT)
    back = shift(model, shift(model, cache, 23), -23)
    yield Check(3, "there and back changes nothing", "relative", _all_apart(back, cache), KEYS)


def _no_look_ahead(model: PreTrainedModel, texts: _Texts, read: Read, answer_nll: Ask) -> Iterator[Check]:
    kept = read(model, texts.readings(prefixed=True)[:1], bos=texts.bos)[0]
    asked = max(texts.asked, key=lambda one: len(one.answer))
    n = len(asked.answer)
    shorter = [Asked(asked.context, asked.answer[:j]) for j in range(1, n)]
    other = [_changed(asked.answer, j) for j in range(1, n)]
    variants = [*shorter, *(Asked(asked.context, answer) for answer in other)]
    base, *results = answer_nll(model, [kept] * (1 + len(variants)), [asked, *variants])
    error = 0.0
    for j, result in zip([*range(1, n), *range(1, n)], results, strict=True):
        error = _worst(error, (result[:j] - base[:j]).abs())
    yield Check(4, "no look-ahead: later tokens change no earlier NLL", "nats", error, NLL)
    document = texts.documents[1]
    documents = [document, *(_changed(document, j) for j in range(len(document)))]
    readings = [Reading(d, texts.prefixes[1], texts.separator) for d in documents]
    full, *changed = read(model, readings, bos=texts.bos)
    first = len(texts.opened([]))
    error = 0.0
    for j, cache in enumerate(changed):
        for position, a, b in zip(full.positions, cache.keys, full.keys, strict=True):
            earlier = position[0] < first + j
            if bool(earlier.any()):
                error = _worst(error, _apart(a[:, earlier], b[:, earlier]))
    yield Check(4, "... and no earlier key of the document", "relative", error, KEYS)


def _bos_and_positions(model: PreTrainedModel, texts: _Texts, read: Read) -> Iterator[Check]:
    kept = read(model, texts.readings(prefixed=True), bos=texts.bos)
    wrong, error = 0, 0.0
    for document, cache in zip(texts.documents, kept, strict=True):
        n = len(texts.opened(document))
        wrong += cache.end != n
        bos = _computed(model, texts.opened(document)[:1])
        for layer, window in enumerate(sliding_windows(model)):
            held = n if window is None else min(n, window - 1)
            expected = torch.arange(n - held, n, device=model.device)
            found = cache.positions[layer]
            wrong += abs(found.shape[1] - held) + abs(cache.lengths[layer] - held)
            wrong += int((found[:, : len(expected)] != expected[: found.shape[1]]).sum())
            if texts.bos is not None and held == n:
                error = _worst(error, _apart(cache.keys[layer][:, :1], bos[layer]))
    yield Check(5, "lengths and positions agree", "entries", float(wrong), COUNT)
    yield Check(5, "BOS is kept at position 0", "relative", error, KEYS)


def _windows(model: PreTrainedModel, texts: _Texts, read: Read) -> Iterator[Check]:
    wrong, error = 0, 0.0
    kept = read(model, texts.readings(prefixed=False), bos=texts.bos)
    for document, cache in zip(texts.documents, kept, strict=True):
        held = _held(model, texts.opened(document))
        for layer, keys in enumerate(held):
            if sliding_windows(model)[layer] is None:
                continue
            wrong += abs(keys.shape[1] - cache.lengths[layer])
            if keys.shape[1] == cache.lengths[layer]:
                error = _worst(error, _apart(cache.keys[layer], keys))
    yield Check(6, "sliding windows hold as many entries as in a full run", "entries", float(wrong), COUNT)
    yield Check(6, "... and the same", "relative", error, KEYS)


def _one_pass(model: PreTrainedModel, text: Sequence[int], n: int) -> Tensor:
    """Return the NLL of the last ``n`` tokens, as the model itself computes it. [n]"""
    ids = torch.tensor([text], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=n + 1).logits[0, -n - 1 : -1].float()
    return -logits.log_softmax(-1).gather(1, ids[0, -n:, None])[:, 0].cpu()


def _computed(model: PreTrainedModel, text: Sequence[int]) -> list[Tensor]:
    """Return the keys of a text, all of them, layer by layer as the model itself computes them: [H, T, D]."""
    return _keys(model, text, DynamicCache())


def _held(model: PreTrainedModel, text: Sequence[int]) -> list[Tensor]:
    """Return the keys that the model's own cache holds after a text, [H, at most T, D]."""
    return _keys(model, text, DynamicCache(config=model.config))


def _keys(model: PreTrainedModel, text: Sequence[int], cache: DynamicCache) -> list[Tensor]:
    ids = torch.tensor([text], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [layer.keys[0] for layer in cache.layers if layer.keys is not None]


def _last(keys: Tensor, cache: DocumentCache, layer: int) -> Tensor:
    """Return as many of the last keys as a layer of a cache holds."""
    return keys[:, keys.shape[1] - cache.lengths[layer] :]


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """Return the largest difference, relative to the largest key; infinite where the numbers differ."""
    if found.shape != expected.shape:
        return torch.tensor(float("inf"))
    return (found.float() - expected.float()).abs().max() / expected.float().abs().max()


def _all_apart(found: DocumentCache, expected: DocumentCache) -> float:
    return max(float(_apart(a, b)) for a, b in zip(found.keys, expected.keys, strict=True))


def _worst(error: float, more: Tensor) -> float:
    """Return the larger error; NaN if one of them is."""
    largest = float(more.max())
    return largest if largest != largest or largest > error else error


def _changed(ids: Sequence[int], index: int) -> list[int]:
    changed = list(ids)
    changed[index] = changed[index] + 1 if changed[index] == min(ids) else min(ids)
    return changed


@contextmanager
def _narrowed(model: PreTrainedModel) -> Iterator[int | None]:
    """Narrow wide sliding windows for a while; yield the window before, or None."""
    config = model.config.get_text_config(decoder=True)
    widest = max((w for w in sliding_windows(model) if w is not None), default=0)
    if widest <= _WIDEST:
        yield None
        return
    before, config.sliding_window = config.sliding_window, _WIDEST
    try:
        yield before
    finally:
        config.sliding_window = before
