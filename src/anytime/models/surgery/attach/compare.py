"""Whether two traces of a network do the same."""

from __future__ import annotations

from typing import Any, NamedTuple

from anytime.models.surgery.attach.calls import Call, Operation, Value, leaves_of


class Difference(NamedTuple):
    """A call that another trace does differently: why it cannot be opened, or None if it is because of the images' size."""

    call: Call
    problem: str | None

    def note(self) -> None:
        """Notes it in the call."""
        if self.problem is None:
            self.call.fixed = True
        else:
            self.call.problem = self.call.problem or self.problem


def differences(call: Call, other: Call, why: str | None, batch: bool = False) -> list[Difference]:
    """Where a call, and those inside it, differ from another trace of it, because of `why`; None: the images' size.

    With another `batch`, what divisions leave must be the same.
    """
    comparison = _Comparison(why, batch)
    comparison.calls(call, other)
    return comparison.found


class _Comparison:
    """Compares two traces; `pairs` are values known to be the same."""

    def __init__(self, why: str | None, batch: bool) -> None:
        self.why, self.batch = why, batch
        self.pairs: dict[Value, Value] = {}
        self.found: list[Difference] = []

    def calls(self, call: Call, other: Call) -> None:
        """Compares two calls whose arguments are known to be the same."""
        if not self.pairs:
            given = leaves_of((call.args, call.kwargs)), leaves_of((other.args, other.kwargs))
            self.pairs |= dict(zip(*given, strict=True))
        agree = len(call.items) == len(other.items) and call.decisions == other.decisions
        agree = agree and (not self.batch or call.remainders == other.remainders)
        for a, b in zip(call.items, other.items, strict=False):
            if not agree:
                break
            agree = self._items(a, b)
        if not agree or (other.problem and not call.problem):
            self._differs(call, other.problem)
        if other.fixed and not call.fixed:
            self.found.append(Difference(call, None))

    def _items(self, a: Operation | Call, b: Operation | Call) -> bool:
        if isinstance(a, Operation) and isinstance(b, Operation):
            self.pairs[a.result] = b.result
            return a.kind == b.kind and a.target == b.target and self._same((a.args, a.kwargs), (b.args, b.kwargs))
        if not (isinstance(a, Call) and isinstance(b, Call) and a.path == b.path):
            return False
        if not self._same((a.args, a.kwargs), (b.args, b.kwargs)):
            return False
        self.calls(a, b)
        ours, theirs = leaves_of(a.result), leaves_of(b.result)
        if len(ours) != len(theirs):
            return False
        for one, two in zip(ours, theirs, strict=True):
            if isinstance(one, Value) and isinstance(two, Value):
                if self.pairs.get(one, two) is not two and a.items:
                    self._differs(a)
                self.pairs[one] = two
            elif not _equal(one, two):  # a constant that the calls around it go on with
                return False
        return True

    def _differs(self, call: Call, problem: str | None = None) -> None:
        self.found.append(Difference(call, None if self.why is None else problem or self.why))

    def _same(self, one: Any, other: Any) -> bool:
        ours, theirs = leaves_of(one), leaves_of(other)
        return len(ours) == len(theirs) and all(
            (self.pairs.get(a, a) is b) if isinstance(a, Value) else _equal(a, b) for a, b in zip(ours, theirs, strict=True)
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two constants are the same; those that cannot be compared, as objects of a network's own, count as the same."""
    if type(one) is not type(other):
        return False
    try:
        return one is other or bool(one == other)
    except (ValueError, TypeError, RuntimeError):  # arrays
        return repr(one) == repr(other)
