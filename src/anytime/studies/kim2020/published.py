"""The numbers that Kim, Bradford and Shao (2020) published."""

from __future__ import annotations

PAPER = "Kim, Bradford, Shao, AnytimeNet: Controlling Time-Quality Tradeoffs in Deep Neural Network Architectures, DATE 2020"
FIGURES = "figures 3 and 4 are drawings; neither they nor the text give accuracies, confidences or correlations"
PARTS = ("IN", "SEC 1", "SEC 2", "SEC 3", "OUT")
TABLE_1 = (  # blocks executed up to and including each iteration
    (1, 1, 1, 1, 1),
    (1, 5, 2, 2, 2),
    (1, 8, 3, 3, 3),
    (1, 8, 7, 4, 4),
    (1, 8, 10, 5, 5),
    (1, 8, 10, 9, 6),
    (1, 8, 10, 12, 7),
)
TABLE_2 = {  # seconds of a block for the whole test set: mean over all iterations, and of BASELINE
    "cifar10": (0.063, 0.084),
    "gtsrb": (0.153, 0.212),
    "stanfordcars": (0.098, 0.123),
}
TABLE_2_SOURCE = "table II; NVIDIA Quadro P6000, batch size not given"
AS_LONG_AS_BASELINE = 5  # section III-B3: the iteration by which AnytimeNet takes roughly the time of BASELINE
