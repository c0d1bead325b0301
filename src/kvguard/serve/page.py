"""The page at ``/``: one document, its style and script in it, and a policy that lets it do no more."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from starlette.responses import HTMLResponse


def page(locked: bool) -> HTMLResponse:
    """Return the page.

    Its script may speak to this server only, and nothing but that script runs, whatever a model writes.

    Parameters
    ----------
    locked
        A key is asked for.
    """
    folder = files("kvguard.serve") / "web"
    style, script, text = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    policy = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }
    whole = text.replace("{{ locked }}", "yes" if locked else "no")
    return HTMLResponse(whole.replace("{{ style }}", style).replace("{{ script }}", script), headers=headers)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
