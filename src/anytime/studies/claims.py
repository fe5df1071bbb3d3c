"""Claims of a paper: what was measured of each, and whether it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A statement that should show in the results.

    Args:
        statement: The statement.
        shows: Whether it shows; None if the results cannot tell, e.g. a single seed has no standard error.
        measured: The numbers that decide, by name.
        paper: The same by the paper's numbers, or only the place where the paper makes the statement; None if it does not.
    """

    statement: str
    shows: bool | None
    measured: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] | str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As written to JSON."""
        paper = {"shows": True, "source": self.paper} if isinstance(self.paper, str) else self.paper
        return {"claim": self.statement, "shows": self.shows, **self.measured, "paper": paper}


def format_claims(claims: Sequence[Claim], gains: bool = False) -> str:
    """One line per claim: yes, NO or unknown, then the statement, then its gain if asked for."""
    words = {True: "yes", False: "NO", None: "unknown"}
    lines = [f"{words[claim.shows]:<8} {claim.statement}" for claim in claims]
    if gains:
        lines = [f"{line} ({claim.measured['gain']:+.2%})" for line, claim in zip(lines, claims, strict=True)]
    return "\n".join(lines)
