"""OPT of any network, the reference for anytime networks: one training for each exit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from anytime.studies.executors.subprocess import train_in_subprocess
from anytime.studies.runner import one_per_seed, run_all
from anytime.trace import Trace


def train_family(
    recipe: str | os.PathLike[str],
    exits: Sequence[int],
    folder: str | os.PathLike[str],
    flags: Sequence[str] = (),
    seed: int = 0,
    train: Callable[[Sequence[str], Path], int] = train_in_subprocess,
) -> dict[int, Trace]:
    """Trains one network per exit with the loss of that exit only, and records the answers of each to the test images.

    Each training is `anytime train --config RECIPE FLAGS --objective Optimal --objective.exit i` in the run directory
    `FOLDER/RECIPE_optimal_i_seedS`. Finished trainings are skipped and interrupted ones resumed.

    Args:
        recipe: A recipe file, of any model and data.
        exits: The exits, from 1; put the last one first, it is the most informative.
        folder: Where the run directories go.
        flags: Flags over the recipe, e.g. `["--model.units=5"]`.
        seed: Seed of all trainings.
        train: Called with the arguments of `anytime train` and a log file; returns an exit code.

    Returns:
        Exit to trace: `Exits.of_family(traces)` are OPT's errors and costs, `analysis.optimal.relative_increase` compares.

    Raises:
        ValueError: `exits` is empty or holds an exit twice.
        TrainingStopped: A training failed.

    Source: Hu et al. 2017, section 4.1.
    """
    if not exits or len(set(exits)) != len(exits):
        raise ValueError(f"exits must hold at least one exit and none twice, got {list(exits)}")
    path = Path(recipe)
    networks = {
        f"optimal_{exit}": ((*flags, "--objective=Optimal", f"--objective.exit={exit}"), {f"optimal {exit}": None})
        for exit in exits
    }
    traces = run_all(one_per_seed(path.stem, path, [seed], networks), Path(folder), train)
    return {exit: traces[f"optimal {exit}"][seed] for exit in exits}
