"""One leaderboard of anytime networks under one recipe, with static networks of several sizes beside them."""

from __future__ import annotations

from anytime.studies.leaderboard.board import leaderboard
from anytime.studies.leaderboard.networks import DATA, MOST_PARAMETERS, MOST_SECONDS, SCALES, runs
from anytime.studies.leaderboard.rows import kept_rows
from anytime.studies.study import Item, Study

_TITLE = "accuracy of every answer over MACs and milliseconds, beside static networks"

STUDY = Study(
    paper=(
        "Leaderboard: anytime networks of the papers under one recipe, at most "
        f"{MOST_PARAMETERS / 1e6:g} M parameters each and, at the fast scale, {MOST_SECONDS // 60} minutes of training"
    ),
    items={"table 1": Item(_TITLE, runs, leaderboard, partial=True, kept=kept_rows)},
    data={scale: list(DATA) for scale in SCALES},
    seeds={"fast": (0,), "full": (0,)},
    fixed=("model", "objective"),
)
