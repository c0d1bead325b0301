"""Measure, forecast and prevent catastrophic failures of LLMs under KV cache compression."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvguard.guard.session import Guard

__all__ = ["Guard"]


def __getattr__(name: str) -> Any:
    """Import what is heavy only when it is asked for."""
    if name == "Guard":
        from kvguard.guard.session import Guard

        return Guard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
