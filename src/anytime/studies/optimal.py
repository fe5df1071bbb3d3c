"""OPT of any network: one training for each exit, what an anytime network is measured against."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from anytime.studies.executors.subprocess import train_apart
from anytime.studies.runner import Run, record_views, run_all
from anytime.trace import Trace


def train_family(
    recipe: str | os.PathLike[str],
    exits: Sequence[int],
    folder: str | os.PathLike[str],
    flags: Sequence[str] = (),
    seed: int = 0,
    train: Callable[[Sequence[str], Path], int] = train_apart,
) -> dict[int, Trace]:
    """Trains a network for each exit by that exit's loss alone, and records what each says about the test images.

    Each is `anytime train --config RECIPE FLAGS --objective Optimal --objective.exit i` in a run directory of its own,
    `FOLDER/RECIPE_optimal_i_seedS`; what is finished is not trained again, and what was interrupted goes on.

    Args:
        recipe: A recipe file, of any model and data.
        exits: Which answers, from 1; the last one first tells most.
        folder: Of the run directories.
        flags: Over the recipe, e.g. `["--model.units=5"]`.
        seed: Of all of them.
        train: Called with the arguments of `anytime train` and a log file; returns an exit code.

    Returns:
        Exit to trace: `Exits.of_family(traces)` are OPT's errors and costs, `analysis.optimal.relative_increase` compares.

    Raises:
        ValueError: No exits, or one twice.
        TrainingStopped: A training failed.

    Source: Hu et al. 2017, section 4.1.
    """
    if not exits or len(set(exits)) != len(exits):
        raise ValueError(f"exits must be at least one, each once, got {list(exits)}")
    path = Path(recipe)
    runs = []
    for exit in exits:
        objective = ("--objective=Optimal", f"--objective.exit={exit}")
        name = f"{path.stem}_optimal_{exit}_seed{seed}"
        runs.append(Run(name, path, (*flags, *objective), seed, {f"optimal {exit}": None}))
    traces = run_all(runs, Path(folder), train, record_views)
    return {exit: traces[f"optimal {exit}"][seed] for exit in exits}
