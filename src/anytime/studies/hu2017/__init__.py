"""Tables 1 to 6 and figures 2 to 4 of Hu, Dey, Bagnell, Hebert, "Anytime Neural Networks via Joint Optimization of Auxiliary
Losses", 2017, and AdaLoss of their AAAI 2019 paper beside them.

ANN is a network with sieve weights ("sieve"), AANN amplifies one exit in every step, OPT ("optimal") is one network for each
exit. Table 1a is the part of table 1 that needs the fewest trainings, 1b has OPT at every milestone, too: of several calls
the later ones train only what is missing. Proposition 3.1 stands as table 3.1. Where the paper takes validation images for
table 1 and figure 2, ours are test images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anytime.studies.hu2017 import figures, strategies, tables
from anytime.studies.hu2017.networks import (
    SCALES,
    STRATEGIES,
    Base,
    Network,
    Networks,
    Scale,
    family,
    last_optimal,
    runs_of,
)
from anytime.studies.hu2017.published import PAPER
from anytime.studies.runner import Run, Traces
from anytime.studies.study import Item, Result, Study

Make = Callable[[Traces, str, Scale, Sequence[Network]], Result]

FIRST = ("constant", "sieve", "AdaLoss", "linear", "expb2")
"""The schemes of table 1a."""


def _schemes(scale: Scale, data: str, chosen: Sequence[str]) -> list[Network]:
    return [Network(method, scale.chosen) for method in scale.schemes[data] if method in chosen]


def first_schemes(scale: Scale, data: str) -> list[Network]:
    """OPT's last exit and the schemes that tell most."""
    return [last_optimal(scale.chosen), *_schemes(scale, data, FIRST)]


def first_schemes_and_optimal(scale: Scale, data: str) -> list[Network]:
    """And OPT of the other exits; on CIFAR-100 at CPU scale there is the last alone."""
    return [*first_schemes(scale, data), *family(scale.chosen, scale.optimal[data])[1:]]


def all_schemes(scale: Scale, data: str) -> list[Network]:
    """Everything of table 1."""
    more = [method for method in scale.schemes[data] if method not in FIRST]
    return [*first_schemes_and_optimal(scale, data), *_schemes(scale, data, more)]


def _on(bases: Sequence[Base], methods: Sequence[str], optimal: bool) -> list[Network]:
    return [net for base in bases for net in (*(Network(m, base) for m in methods), *(family(base) if optimal else ()))]


def amplified(scale: Scale, data: str) -> list[Network]:
    """Of table 2."""
    return _on(scale.models, ("sieve", "AANN", "milestone"), optimal=True)


def shown(scale: Scale, data: str) -> list[Network]:
    """Of table 3."""
    rivals = [net for base in strategies.rivals(scale) for net in family(base)]
    return [*_on(scale.shown, ("sieve", "AANN"), optimal=True), *_on(scale.members, ("AANN",), optimal=False), *rivals]


def sequence(scale: Scale, data: str) -> list[Network]:
    """EANN's members and OPT+."""
    rivals = [net for base in strategies.rivals(scale) for net in family(base)]
    return [*_on(scale.members, ("AANN",), optimal=False), *rivals]


def periods(scale: Scale, data: str) -> list[Network]:
    """Of table 4."""
    bases = [Base(units, scale.period_width, s) for units, found in scale.periods.items() for s in found]
    return _on(bases, ("sieve",), optimal=False)


def all_strategies(scale: Scale, data: str) -> list[Network]:
    """Of table 5."""
    return _on(scale.models, ("sieve", *STRATEGIES), optimal=False)


def everything(scale: Scale, data: str) -> list[Network]:
    """Of table 6."""
    return _on(scale.models, ("sieve", *STRATEGIES), optimal=True)


def sampled(scale: Scale, data: str) -> list[Network]:
    """Of figure 4."""
    return _on([scale.sampled], ("EXP3", "RWM", "AVGL", "AANN"), optimal=False)


def untrained(scale: Scale, data: str) -> list[Network]:
    """Nothing."""
    return []


def _item(title: str, networks: Networks, make: Make) -> Item:
    """Traces do not say at which scale they were made, but no two scales share a network."""

    def runs(data: str, scale: str, seeds: Sequence[int]) -> list[Run]:
        return runs_of(networks(SCALES[scale], data), data, SCALES[scale], scale, seeds)

    def made(traces: Traces, data: str) -> Result:
        for scale in SCALES.values():
            wanted = networks(scale, data) if data in scale.recipes else None
            if wanted is not None and all(net.name in traces for net in wanted):
                return make(traces, data, scale, wanted)
        raise ValueError(f"{title}: traces are missing; there are {', '.join(traces)}")

    return Item(title, runs, made)


STUDY = Study(
    paper=PAPER,
    items={
        "table 1": _item("weight schemes at the milestones of cost", all_schemes, tables.table_1),
        "table 1a": _item("of table 1: OPT's last exit and five schemes", first_schemes, tables.table_1),
        "table 1b": _item("table 1a with OPT at every milestone", first_schemes_and_optimal, tables.table_1),
        "table 2": _item("amplified losses against ANN, increase over OPT", amplified, strategies.table_2),
        "table 3": _item("ANN and AANN on several networks, EANN and OPT+", shown, strategies.table_3),
        "table 3.1": _item("proposition 3.1: cost inflation, without training", untrained, tables.proposition),
        "table 4": _item("units per exit", periods, tables.table_4),
        "table 5": _item("strategies of amplification against ANN", all_strategies, strategies.table_5),
        "table 6": _item("every network under every strategy", everything, strategies.table_6),
        "figure 2": _item("errors and training losses over units (2a to d)", all_schemes, figures.figure_2),
        "figure 2f": _item("the sieve's weights of 15 exits, without training", untrained, figures.figure_2f),
        "figure 2e": _item("EANN and OPT+ over the cost", sequence, figures.figure_2e),
        "figure 3": _item("error over cost by units per exit", periods, figures.figure_3),
        "figure 4": _item("probability of each exit over the training", sampled, figures.figure_4),
    },
    data={name: list(scale.recipes) for name, scale in SCALES.items()},
    seeds={"cpu": (0, 1, 2), "full": (0,)},
    fixed=("model.units", "model.width", "model.period", "model.regime", "objective"),
)
