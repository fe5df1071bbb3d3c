"""Objects by name: suggestions for a wrong name, and imports by path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence's end that helps: `; did you mean 'x'?` or the list of what is valid."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"
