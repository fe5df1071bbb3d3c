"""A claim of a paper, what was measured of it, and whether it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anytime.analysis.statistics import difference


def told(claims: Sequence[Mapping[str, Any]]) -> str:
    said = {True: "yes", False: "NO", None: "unknown"}
    return "\n".join(f"{said[claim['shows']]:<8} {claim['claim']}" for claim in claims)


def gain_of(errors: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """How much smaller the first errors are; its standard error is nan for a single seed."""
    gain, standard_error = difference(others, errors)
    return {"gain": gain, "standard_error": standard_error, "seeds": len(errors)}
