"""Figures 3 and 4 and tables 1 and 2 of Kim, Bradford, Shao, "AnytimeNet: Controlling Time-Quality Tradeoffs in Deep Neural
Network Architectures", 2020. The tables are of costs, so they need no training.
"""

from __future__ import annotations

from collections.abc import Sequence

from anytime.studies.kim2020.figures import figure_3, figure_4
from anytime.studies.kim2020.networks import SCALES, figure_3_runs, figure_4_runs
from anytime.studies.kim2020.published import PAPER
from anytime.studies.kim2020.tables import table_1, table_2
from anytime.studies.runner import TrainingRun
from anytime.studies.study import Item, Study


def untrained(data: str, scale: str, seeds: Sequence[int]) -> list[TrainingRun]:
    """No training."""
    return []


STUDY = Study(
    paper=PAPER,
    items={
        "figure 3": Item("accuracy and confidence of each iteration, beside BASELINE", figure_3_runs, figure_3),
        "figure 4": Item("confidence against accuracy, by class and iteration", figure_4_runs, figure_4),
        "table 1": Item("blocks executed by each iteration, without training", untrained, table_1),
        "table 2": Item("average cost of a block by iteration, without training", untrained, table_2),
    },
    data={scale: list(recipes) for scale, recipes in SCALES.items()},
    seeds={"cpu": (0,), "fast": (0, 1, 2, 3, 4), "full": (0,)},
)
