"""Server-sent events, as OpenAI's streams have them."""

from __future__ import annotations

import json
from typing import Any


def event(data: dict[str, Any] | str) -> bytes:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode("utf-8", "replace")
