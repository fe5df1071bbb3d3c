"""The style that reports, the live page and the site share, and what lets a page run only its own script."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def read(*names: str) -> str:
    """Style sheets or scripts of this folder, one after the other."""
    return "\n".join((files(__name__) / name).read_text(encoding="utf-8") for name in names)


def allowed(text: str) -> str:
    """What a Content-Security-Policy says to allow an inline script or style: `'sha256-...'`."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
