"""From a name and its parameters to a kvpress press; what a press needs of a prefill."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

from kvguard.errors import KvguardError, foreign

if TYPE_CHECKING:
    from kvpress import BasePress


class PressSpec(Protocol):
    """A kvpress press by class name, and the arguments it is built with (all but the ratio)."""

    @property
    def press(self) -> str:
        """The class's name."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Its arguments."""


NONE = "none"  # the uncompressed baseline

# Presses whose `score` does not read the ratio: scored once, cut at every ratio (checked in kvpress 0.5.5).
_RATIO_FREE = frozenset(
    {
        "ExpectedAttentionPress",
        "KeyDiffPress",
        "KnormPress",
        "ObservedAttentionPress",
        "RandomPress",
        "SnapKVPress",
        "TOVAPress",
    }
)
_NEEDS_EAGER = frozenset({"ObservedAttentionPress"})
_LONGER_THAN = {  # arguments that a prompt must be longer than; other classes give these names other meanings
    "CapPress": "n_sink",
    "ExpectedAttentionPress": "n_sink",
    "SnapKVPress": "window_size",
    "StreamingLLMPress": "n_sink",
}


@dataclass(frozen=True, order=True)
class Condition:
    """A compressor at a compression ratio (the fraction of KV pairs removed)."""

    compressor: str
    ratio: float

    def __str__(self) -> str:
        return self.compressor if self.compressor == NONE else f"{self.compressor}@{self.ratio:g}"


@dataclass(frozen=True)
class BuiltPress:
    """A condition's press, and what a prefill needs to know of it.

    Attributes
    ----------
    press : BasePress or None
        None for the uncompressed baseline.
    attention : str
        The attention implementation of its prefill: ``eager`` or ``sdpa``.
    shares_prefill : bool
        One forward pass can serve it beside others: the baseline, and presses that only score.
    shortest_prompt : int
        The fewest prompt tokens that it accepts.
    """

    press: BasePress | None
    attention: str
    shares_prefill: bool
    shortest_prompt: int

    @classmethod
    def of(cls, press: BasePress | None) -> BuiltPress:
        """Ask a press, once, what a prefill needs to know."""
        return cls(
            press,
            attention_for(press),
            press is None or only_scores(press),
            1 if press is None else shortest_prompt(press),
        )


class Presses(Mapping[Condition, BuiltPress]):
    """The press of every condition, built once in every process.

    A press is mutable: it learns the model's shape, and some keep state while a prompt is compressed. So what
    travels to another process is the specs, and the presses are built anew there.

    Parameters
    ----------
    conditions : sequence of Condition
    specs : mapping of str to PressSpec
        The press of every compressor that the conditions name.

    Raises
    ------
    KvguardError
        If kvpress has no such press, or a press does not take its parameters.
    """

    def __init__(self, conditions: Sequence[Condition], specs: Mapping[str, PressSpec]) -> None:
        self._specs = {c.compressor: specs[c.compressor] for c in conditions if c.compressor != NONE}
        self._built = {
            c: BuiltPress.of(None if c.compressor == NONE else build_press(specs[c.compressor], c.ratio))
            for c in conditions
        }

    def __reduce__(self) -> tuple[type[Presses], tuple[list[Condition], dict[str, PressSpec]]]:
        return Presses, (list(self._built), self._specs)

    def __getitem__(self, condition: Condition) -> BuiltPress:
        return self._built[condition]

    def __iter__(self) -> Iterator[Condition]:
        return iter(self._built)

    def __len__(self) -> int:
        return len(self._built)

    def by_attention(self, conditions: Sequence[Condition]) -> dict[str, list[Condition]]:
        """Group conditions by the attention implementation of their prefill: one pass serves a group."""
        groups: dict[str, list[Condition]] = {}
        for condition in conditions:
            groups.setdefault(self[condition].attention, []).append(condition)
        return groups


def build_press(spec: PressSpec, ratio: float) -> BasePress:
    """Build a fresh kvpress press.

    Parameters
    ----------
    spec : PressSpec
        The press class and its parameters; a parameter that is itself a mapping with a ``press`` key
        (AdaKV's inner press, say) is built the same way, whether its own parameters stand beside that key or
        under ``params``.
    ratio : float
        Compression ratio in [0, 1): the fraction of KV pairs removed.

    Raises
    ------
    KvguardError
        If kvpress has no such press, or the press does not take these parameters.
    """
    return _build(spec.press, spec.params, ratio)


def _build(name: str, params: Mapping[str, Any], ratio: float) -> BasePress:
    import kvpress

    known = sorted(n for n in kvpress.__all__ if n.endswith("Press"))
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3)
        raise KvguardError(f"press: kvpress has no {name!r}; did you mean {', '.join(near or known)}?")
    if "compression_ratio" in params:
        raise KvguardError(
            f"press {name}: its compression_ratio is that of the condition, {ratio:g}, as is that of presses "
            "inside it: leave it out of params.yaml, compressors"
        )
    cls = getattr(kvpress, name)
    arguments = {key: _inner(value, ratio) for key, value in params.items()}
    with foreign(f"press {name}", "fix its parameters in params.yaml, compressors"):
        if "compression_ratio" in inspect.signature(cls).parameters:
            arguments["compression_ratio"] = ratio
        press: BasePress = cls(**arguments)
    check_press(press)
    return press


def _inner(value: Any, ratio: float) -> Any:
    if isinstance(value, list):  # ComposedPress takes several
        return [_inner(item, ratio) for item in value]
    if isinstance(value, Mapping) and "press" in value:
        params = value.get("params")  # apart, where one of them is called press as well
        if not isinstance(params, Mapping):
            params = {k: v for k, v in value.items() if k != "press"}
        return _build(value["press"], params, ratio)
    return value


def presses_in(press: object) -> Iterator[BasePress]:
    """Yield a press and every press inside it, at any depth: in its attributes, and in lists of them."""
    from kvpress import BasePress

    seen: dict[int, object] = {}
    waiting = [press]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        if isinstance(found, BasePress):
            yield found
            waiting += vars(found).values()
        elif isinstance(found, Mapping):
            waiting += found.values()
        elif isinstance(found, list | tuple | set):
            waiting += found
        seen[id(found)] = found


def check_press(press: object) -> None:
    """Reject what is no press, and a press that would not do what its arguments say, at any depth.

    Raises
    ------
    KvguardError
        If it is no press, compresses while decoding, or removes no share from 0 to below 1.
    """
    from kvpress import BasePress, DecodingPress, DMSPress, PrefillDecodingPress, ScorerPress

    if not isinstance(press, BasePress):
        raise KvguardError(f"press: {press!r} is no kvpress press: pass SnapKVPress(0.75), say, or None")
    for inner in presses_in(press):
        name, ratio = f"press {type(inner).__name__}", asked_ratio(inner)
        if isinstance(inner, DecodingPress | PrefillDecodingPress):
            raise KvguardError(
                f"{name}: it compresses what is being generated, by itself: name the press inside it "
                "instead, and give the guard a compression_interval"
            )
        if isinstance(inner, DMSPress) and inner.decoding:
            raise KvguardError(
                f"{name}: with decoding it compresses what is being generated, by itself: set decoding=False"
            )
        if (ratio is None and isinstance(inner, ScorerPress)) or not 0 <= (ratio or 0) < 1:
            asked = getattr(inner, "compression_ratio", None)
            shown = "" if asked is None else f" of {asked!r}"
            raise KvguardError(
                f"{name}: a compression_ratio{shown} is no share to remove: pass one from 0 to below 1"
            )


def asked_ratio(press: BasePress | None) -> float | None:
    """Return the ratio that a press was asked for; None for those that know theirs only after a pass."""
    try:
        ratio = getattr(press, "compression_ratio", None)
    except Exception:  # a property of whatever kind: that it has no answer is the answer
        return None
    return float(ratio) if isinstance(ratio, Real) else None


def attention_for(press: BasePress | None) -> str:
    """Name the attention implementation that a press's prefill runs under: ``eager`` or ``sdpa``."""
    return "eager" if any(_of(inner, *_NEEDS_EAGER) for inner in presses_in(press)) else "sdpa"


def only_scores(press: BasePress) -> bool:
    """Tell whether a press is a pure scorer, so that one prefill can serve it beside others.

    Its class must inherit kvpress's own ``compress``, hook and context manager unchanged.
    """
    from kvpress import BasePress, ScorerPress

    cls = type(press)
    return (
        isinstance(press, ScorerPress)
        and cls.compress is ScorerPress.compress
        and cls.forward_hook is BasePress.forward_hook
        and cls.__call__ is BasePress.__call__
    )


def ratio_free(press: BasePress) -> bool:
    """Tell whether the press's scores are known not to depend on its ratio."""
    return type(press).__name__ in _RATIO_FREE


def shortest_prompt(press: BasePress) -> int:
    """Return the fewest prompt tokens that the press, and those inside it, are known to need."""
    counts = [
        getattr(inner, argument, 0)
        for inner in presses_in(press)
        for name, argument in _LONGER_THAN.items()
        if _of(inner, name)
    ]
    return 1 + max(0, 0, *(count for count in counts if isinstance(count, int)))


def _of(press: BasePress, *names: str) -> bool:
    """Tell whether a press is of one of kvpress's classes, or of one derived from them."""
    return any(cls.__name__ in names for cls in type(press).__mro__)
