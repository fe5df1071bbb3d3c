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
    """One line per claim: yes, NO or unknown, then the statement and its note."""
    words = {True: "yes", False: "NO", None: "unknown"}
    return "\n".join(f"{words[claim.shows]:<8} {claim.statement}{claim.note and f' ({claim.note})'}" for claim in claims)
