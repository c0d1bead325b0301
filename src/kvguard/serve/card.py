"""What ``/v1/models`` says of the model: what it is, and what of it requests may choose."""

from __future__ import annotations

from typing import Any

from kvguard.engine.memory import entry_bytes
from kvguard.engine.presses import NONE
from kvguard.serve.limits import ACTIONS
from kvguard.serve.served import Served

Json = dict[str, Any]


def card(served: Served, created: int) -> Json:
    """Return the model's entry; ``created`` is when it was loaded, in seconds since 1970."""
    about = {"id": served.name, "object": "model", "created": created, "owned_by": "kvguard"}
    about |= {"max_model_len": served.window, "root": served.loaded.name, "parent": None}
    return {**about, "kvguard": _offer(served)}


def _offer(served: Served) -> Json:
    """Return how requests are served that choose nothing, and what others may choose."""
    choosing, guard, condition = served.limits.choosing, served.guard, served.condition
    own = [condition.compressor]
    points = {served.point: guard.point} if guard is not None else {}
    if choosing and guard is not None:
        points |= served.points
    return {
        "compressor": condition.compressor,
        "ratio": condition.ratio,
        "guard": guard is not None,
        "action": served.action.value if guard is not None else None,
        "point": served.point if guard is not None else None,
        "points": {
            name: {"tau_low": point.tau_low, "tau_high": point.tau_high} for name, point in points.items()
        },
        "chat": served.loaded.has_chat,
        "max_tokens": served.usual_tokens,
        "bytes_per_token": entry_bytes(served.loaded.model),
        "allow_kv": choosing,
        "compressors": list(dict.fromkeys([NONE, *served.compressors, *own])) if choosing else own,
        "actions": [action.value for action in ACTIONS] if choosing and guard is not None else [],
    }
