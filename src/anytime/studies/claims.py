"""Claims of a paper: what was measured of each, and whether it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_BESIDE = {"low", "high", "standard_error", "seeds", "p_value", "p_value_holm", "margin", "shows"}  # not what is claimed


@dataclass(frozen=True)
class Claim:
    """A statement that should show in the results.

    Args:
        statement: The statement.
        shows: Whether it shows; None if the results cannot tell, e.g. a single seed has no standard error.
        measured: The numbers that decide, by name. Single numbers are printed after the statement, the first of them with its
            interval if `low` and `high` are there.
        paper: The same by the paper's numbers, or only the place where the paper makes the statement; None if it does not.
        note: Printed after the statement.
    """

    statement: str
    shows: bool | None
    measured: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] | str | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON."""
        paper = {"shows": True, "source": self.paper} if isinstance(self.paper, str) else self.paper
        return {"claim": self.statement, "shows": self.shows, **self.measured, "paper": paper}


def format_claims(claims: Sequence[Claim]) -> str:
    """One line per claim: yes, NO or unknown, the statement, and in brackets our numbers, the paper's and the note."""
    words = {True: "yes", False: "NO", None: "unknown"}
    lines = []
    for claim in claims:
        ours = _named(claim.measured)
        bounds = [claim.measured.get(end) for end in ("low", "high")]
        if ours and all(map(_is_number, bounds)):
            ours[0] += f" [{', '.join(map(_text, bounds))}]"
        theirs = _named({} if claim.paper is None or isinstance(claim.paper, str) else claim.paper)
        paper = f"paper: {', '.join(theirs)}" if theirs else ""
        known = "; ".join(filter(None, (", ".join(ours), paper, claim.note)))
        lines.append(f"{words[claim.shows]:<8} {claim.statement}{known and f' ({known})'}")
    return "\n".join(lines)


def _named(numbers: Mapping[str, Any]) -> list[str]:
    """The single numbers that are claimed, each after its name."""
    found = {name: value for name, value in numbers.items() if name not in _BESIDE and _is_number(value)}
    return [f"{name.replace('_', ' ')} {_text(value)}" for name, value in found.items()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
