"""From a name and its parameters to a kvpress press; what a press needs of a prefill."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kvguard.errors import KvguardError

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
        (AdaKV's inner press, say) is built the same way.
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

    cls = getattr(kvpress, name, None)
    known = sorted(n for n in kvpress.__all__ if n.endswith("Press"))
    if name not in known or cls is None:
        near = difflib.get_close_matches(name, known, n=3)
        raise KvguardError(f"press: kvpress has no '{name}'; did you mean {', '.join(near or known)}?")
    arguments = {key: _inner(value, ratio) for key, value in params.items()}
    if "compression_ratio" in inspect.signature(cls).parameters:
        arguments["compression_ratio"] = ratio
    try:
        press = cls(**arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise KvguardError(f"press {name}: {error}; fix its parameters in params.yaml, compressors") from None
    if isinstance(press, kvpress.DecodingPress | kvpress.PrefillDecodingPress):
        raise KvguardError(
            f"press {name}: it compresses what is being generated, and a sweep compresses prompts: name the "
            "press inside it instead, and give the guard a compression interval"
        )
    return press


def _inner(value: Any, ratio: float) -> Any:
    if isinstance(value, list):  # ComposedPress takes several
        return [_inner(item, ratio) for item in value]
    if isinstance(value, Mapping) and "press" in value:
        return _build(value["press"], {k: v for k, v in value.items() if k != "press"}, ratio)
    return value


def attention_for(press: BasePress | None) -> str:
    """Name the attention implementation that a press's prefill runs under: ``eager`` or ``sdpa``."""
    while press is not None:
        if type(press).__name__ in _NEEDS_EAGER:
            return "eager"
        press = getattr(press, "press", None)
    return "sdpa"


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
    """Return the fewest prompt tokens that the press accepts."""
    needed = [getattr(press, name, 0) for name in ("window_size", "n_sink")]
    inner = getattr(press, "press", None)
    return max(int(max(needed)) + 1, shortest_prompt(inner) if inner is not None else 1)
