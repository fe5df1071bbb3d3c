"""Comparison with OPT, the networks trained for one exit each: error at a cost, OPT+, relative increase of the error.

Source: Hu, Dey, Bagnell, Hebert 2017, sections 4.1 to 4.6. Errors are shares (or all per cent), costs are MACs or units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.curves import MILESTONES, Cost, answers, costs, error, errors_within
from anytime.trace import Trace, labelled

__all__ = ["Exits", "cross_entropy", "opt_plus", "relative_increase"]


@dataclass(frozen=True)
class Exits:
    """The error after each exit, at least one, and the cumulative cost until then.

    Raises:
        ValueError: Lengths differ, or costs are not above 0 and growing.
    """

    errors: tuple[float, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "errors", tuple(map(float, self.errors)))
        object.__setattr__(self, "costs", tuple(map(float, self.costs)))
        if not self.errors or len(self.errors) != len(self.costs):
            raise ValueError(f"each exit needs an error and a cost, got {len(self.errors)} errors and {len(self.costs)} costs")
        if not all(before < after for before, after in zip((0.0, *self.costs), self.costs, strict=False)):
            raise ValueError(f"costs must be above 0 and grow from exit to exit, got {list(self.costs)}")

    @classmethod
    def of(cls, trace: Trace, cost: Cost = "macs") -> Exits:
        """The exits of one network: error and cost of every step of a trace.

        Raises:
            ValueError: Contract costs do not grow with the step.
        """
        return cls(tuple(error(trace).tolist()), tuple(costs(trace, cost).tolist()))

    @classmethod
    def of_family(cls, traces: Mapping[int, Trace], cost: Cost = "contract") -> Exits:
        """OPT: for each exit the network that was trained only for it.

        Args:
            traces: Exit (1..T, as in `--objective optimal --objective.exit i`) to the trace of its network.
            cost: The cost to use. Default: that of computing only this answer, as no other counts.

        Raises:
            ValueError: A trace does not have its exit.
        """
        for exit, trace in traces.items():
            if not 1 <= exit <= trace.num_steps:
                raise ValueError(f"exits must lie in 1..{trace.num_steps}, the steps of the trace, got {exit!r}")
        ordered = sorted(traces.items())
        return cls(
            tuple(float(error(trace)[exit - 1]) for exit, trace in ordered),
            tuple(float(costs(trace, cost)[exit - 1]) for exit, trace in ordered),
        )

    def errors_at(self, spent: Sequence[float]) -> list[float]:
        """Error of the last exit with cost <= each of `spent`; nan before the first exit."""
        return errors_within(self.errors, self.costs, spent)

    def at(self, fractions: Sequence[float] = MILESTONES, total: float | None = None) -> list[float]:
        """Error of the last exit with cost <= fraction * total.

        Args:
            fractions: Default: the four milestones.
            total: Default: the cost of the last exit. For OPT+, give that of the deepest network.
        """
        total = self.costs[-1] if total is None else total
        return self.errors_at([fraction * total for fraction in fractions])

    def step_curve(self) -> tuple[list[float], list[float]]:
        """The corners (costs, errors) of the error over the cost, a step at each new answer (Fig. 3 of the paper).

        Example:
            >>> from anytime.analysis.optimal import Exits
            >>> Exits((0.5, 0.25), (10, 30)).step_curve()
            ([10.0, 30.0, 30.0], [0.5, 0.5, 0.25])
        """
        x, y = [self.costs[0]], [self.errors[0]]
        for cost, new in zip(self.costs[1:], self.errors[1:], strict=True):
            x += [cost, cost]
            y += [y[-1], new]
        return x, y


def opt_plus(networks: Sequence[Exits]) -> Exits:
    """OPT+: the smallest error of any network that costs no more: e(c) = min {e_i : c_i <= c} (section 4.6).

    Args:
        networks: The OPT of several networks, all costs in the same unit.

    Returns:
        Only the exits at which the error falls. Milestones are shares of the deepest network: `opt_plus(all).at(total=...)`.

    Example:
        >>> from anytime.analysis.optimal import Exits, opt_plus
        >>> opt_plus([Exits((0.4, 0.2), (1, 4)), Exits((0.3, 0.25), (2, 6))])
        Exits(errors=(0.4, 0.3, 0.2), costs=(1.0, 2.0, 4.0))
    """
    if not networks:
        raise ValueError("opt_plus needs at least one network, got none")
    points = sorted((cost, err) for exits in networks for err, cost in zip(exits.errors, exits.costs, strict=True))
    best: list[tuple[float, float]] = []
    for cost, err in points:
        if not best or err < best[-1][1]:
            best.append((cost, err))
    return Exits(tuple(err for _, err in best), tuple(cost for cost, _ in best))


def relative_increase(errors: Sequence[float], optimal: Sequence[float]) -> list[float]:
    """(e_i - opt_i) / opt_i, element by element, e.g. at the milestones; 0 is as good as OPT (Table 2b, in per cent).

    Args:
        errors: Errors of an anytime network, e.g. `exits.at()`.
        optimal: Errors of OPT at the same costs.

    Raises:
        ValueError: Lengths differ, or an error of OPT is not above 0.
    """
    if len(errors) != len(optimal) or not all(best > 0 for best in optimal):
        raise ValueError(f"optimal must hold {len(errors)} errors above 0, got {list(optimal)}")
    return [(err - best) / best for err, best in zip(errors, optimal, strict=True)]


def cross_entropy(trace: Trace) -> Tensor:
    """-mean_n log softmax(z_n)_label, in nats, float64 `[T]`.

    For a trace of training images this is the final training loss of each exit (Fig. 2d of the paper).
    """
    trace = labelled(trace)
    labels = trace.labels.expand_as(answers(trace))
    losses = [torch.nn.functional.cross_entropy(z.double(), k) for z, k in zip(trace.logits, labels, strict=True)]
    return torch.stack(losses)
