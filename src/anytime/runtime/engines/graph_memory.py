"""How many values a graph holds at a time at most, in whatever order its engine computes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class GraphOperation(NamedTuple):
    """An operator: the names of what it reads and makes, the sizes of what it makes, and what it holds while it computes."""

    reads: Collection[str]
    makes: dict[str, int]
    scratch: int


def most_held(operations: Sequence[GraphOperation], outputs: Collection[str], small: int) -> int:
    """The most values in memory at a time, in any order in which each operation follows those whose values it reads.

    An operation is a gate if all before it lead to it and all after it follow from it. In every order, those before a gate are
    computed before those after it, so what is held between two gates is at most what is held at the first and what is made
    until the second. Operations that make at most `small` values, or an output, are no obstacle: what they make counts always.

    Args:
        operations: In one such order.
        outputs: Names of the values that are held to the end.
        small: See above.
    """
    count = len(operations)
    maker = {name: place for place, operation in enumerate(operations) for name in operation.makes}
    readers: list[list[int]] = [[] for _ in operations]
    for place, operation in enumerate(operations):
        for name in {*operation.reads} & maker.keys():
            readers[maker[name]].append(place)
    loose = [
        sum(operation.makes.values()) <= small or not operation.makes.keys().isdisjoint(outputs) for operation in operations
    ]
    latest, earliest = [-1] * count, [count] * count  # the last gate before an operation at best, and the first after it
    for place, operation in enumerate(operations):
        makers = {maker[name] for name in operation.reads if name in maker}
        latest[place] = max((latest[other] if loose[other] else other for other in makers), default=-1)
    for place in range(count - 1, -1, -1):
        earliest[place] = min((earliest[other] if loose[other] else other for other in readers[place]), default=count)
    follows, ends = [count] * (count + 1), [0] * count
    for place in range(count - 1, -1, -1):
        follows[place] = min(follows[place + 1], count if loose[place] else latest[place])
        ends[place] = max((earliest[other] if loose[other] else other for other in readers[place]), default=place)
    always = sum(sum(operation.makes.values()) for operation, is_loose in zip(operations, loose, strict=True) if is_loose)
    scratch = max((operation.scratch for operation, is_loose in zip(operations, loose, strict=True) if is_loose), default=0)
    most = held = made = within = leads = 0
    open_until: dict[int, int] = {}
    for place, operation in enumerate(operations):
        if loose[place]:
            continue
        size = sum(operation.makes.values())
        made, within = made + size, max(within, operation.scratch)
        open_until[ends[place]] = open_until.get(ends[place], 0) + size
        most = max(most, held + made + within)
        if leads <= place <= follows[place + 1]:
            open_until = {end: left for end, left in open_until.items() if end > place}
            held, made, within = sum(open_until.values()), 0, 0
        leads = max(leads, earliest[place])
    return always + most + scratch
