"""Tables 1 to 6 and figures 2 to 4 of Hu, Dey, Bagnell, Hebert, "Anytime Neural Networks via Joint Optimization of Auxiliary
Losses", 2017, with AdaLoss of their AAAI 2019 paper beside them.

ANN is a network with sieve weights ("sieve"), AANN amplifies one exit in every step, and OPT ("optimal") is one network per
exit. Table 1a is the part of table 1 that needs the fewest trainings; 1b adds OPT at every milestone. Of several calls, the
later ones train only what is missing. Proposition 3.1 is table 3.1. The paper evaluates table 1 and figure 2 on validation
images, we on test images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from anytime.studies.hu2017 import figures, strategies, tables
from anytime.studies.hu2017.networks import (
    PERIOD_WIDTH,
    SCALES,
    SCHEMES,
    STRATEGIES,
    Base,
    Setting,
    TrainedNet,
    family,
    runs_of,
)
from anytime.studies.hu2017.published import PAPER
from anytime.studies.runner import Traces, TrainingRun
from anytime.studies.study import Item, Result, Study

Networks = Callable[[Setting, str], Sequence[TrainedNet]]
"""`(scale, data)` to the networks that a table or figure needs, in order of training."""
Make = Callable[[Traces, str, Setting, Sequence[TrainedNet]], Result]


def schemes(scale: Setting, data: str, parts: int = 3) -> list[TrainedNet]:
    """The networks of table 1 in three parts: OPT's last exit and the first five schemes, OPT's other exits, other schemes.

    On CIFAR-100 at CPU scale OPT has only the last exit.
    """
    last, *others = family(scale.chosen, scale.optimal[data])
    nets = [TrainedNet(method, scale.chosen) for method in scale.schemes[data]]
    first = [net for net in nets if net.method in SCHEMES[:5]]
    more = [net for net in nets if net not in first]
    return [net for part in ([last, *first], others, more)[:parts] for net in part]


def _on(bases: Sequence[Base], methods: Sequence[str], optimal: bool = False) -> list[TrainedNet]:
    """Each method, and OPT if asked for, on each base network."""
    return [net for base in bases for net in (*(TrainedNet(m, base) for m in methods), *(family(base) if optimal else ()))]


def sequence(scale: Setting, data: str) -> list[TrainedNet]:
    """EANN's members and OPT+."""
    return [*_on(scale.members, ("AANN",)), *_on(strategies.rivals(scale), (), optimal=True)]


def periods(scale: Setting, data: str) -> list[TrainedNet]:
    """The networks of table 4, by units per exit."""
    return _on([Base(units, PERIOD_WIDTH, s) for units, found in scale.periods.items() for s in found], ("sieve",))


def _item(title: str, networks: Networks, make: Make) -> Item:
    """An item made from all traces of its networks.

    Traces do not name their scale; scales that share networks show them alike.
    """

    def runs(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
        return runs_of(networks(SCALES[scale], data), data, scale, seeds)

    def made(traces: Traces, data: str) -> Result:
        for scale in SCALES.values():
            wanted = networks(scale, data) if data in scale.recipes else None
            if wanted is not None and all(net.name in traces for net in wanted):
                return make(traces, data, scale, wanted)
        raise ValueError(f"{title}: traces are missing; there are {', '.join(traces)}")

    return Item(title, runs, made)


AMPLIFIED = ("sieve", "AANN", "milestone")
ITEMS: dict[str, tuple[str, Networks, Make]] = {
    "table 1": ("weight schemes at the milestones of cost", schemes, tables.table_1),
    "table 1a": ("part of table 1: OPT's last exit and five schemes", functools.partial(schemes, parts=1), tables.table_1),
    "table 1b": ("table 1a with OPT at every milestone", functools.partial(schemes, parts=2), tables.table_1),
    "table 2": (
        "amplified losses against ANN, increase over OPT",
        lambda scale, data: _on(scale.models, AMPLIFIED, optimal=True),
        strategies.table_2,
    ),
    "table 3": (
        "ANN and AANN on several networks, EANN and OPT+",
        lambda scale, data: [*_on(scale.shown, ("sieve", "AANN"), optimal=True), *sequence(scale, data)],
        strategies.table_3,
    ),
    "table 3.1": ("proposition 3.1: cost inflation, without training", lambda scale, data: [], tables.proposition),
    "table 4": ("units per exit", periods, tables.table_4),
    "table 5": (
        "strategies of amplification against ANN",
        lambda scale, data: _on(scale.models, ("sieve", *STRATEGIES)),
        strategies.table_5,
    ),
    "table 6": (
        "every network under every strategy",
        lambda scale, data: _on(scale.models, ("sieve", *STRATEGIES), optimal=True),
        strategies.table_6,
    ),
    "figure 2": ("errors and training losses over units (2a to d)", schemes, figures.figure_2),
    "figure 2f": ("the sieve's weights of 15 exits, without training", lambda scale, data: [], figures.figure_2f),
    "figure 2e": ("EANN and OPT+ over the cost", sequence, figures.figure_2e),
    "figure 3": ("error over cost by units per exit", periods, figures.figure_3),
    "figure 4": (
        "probability of each exit over the training",
        lambda scale, data: _on([scale.sampled], ("EXP3", "RWM", "AVGL", "AANN")),
        figures.figure_4,
    ),
}
STUDY = Study(
    paper=PAPER,
    items={name: _item(*item) for name, item in ITEMS.items()},
    data={name: list(scale.recipes) for name, scale in SCALES.items()},
    seeds={"cpu": (0, 1, 2), "fast": (0, 1, 2, 3, 4), "full": (0,)},
    fixed=("model.units", "model.width", "model.period", "model.regime", "objective"),
)
