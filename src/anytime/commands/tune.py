"""Search for the best options of a training: each set from a space is trained, judged on validation images, and ended early
if it is worse than the median. The same command continues an interrupted search. Other options, e.g. --epochs=5, are passed
to `anytime train` for every training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from anytime.commands.parser import Parser
from anytime.support.text import printable
from anytime.support.trust import names_from, typed_paths

SPACE = """\
space.yaml, whose keys are options of `anytime train`:
  optimizer.lr: {log: [0.003, 0.3]}      a number, its logarithm uniform
  objective.weights: [constant, sieve]   one of several values
  model.width: {int: [8, 32]}            a whole number
  optimizer.momentum: {float: [0.8, 0.95]}
"""


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "tune",
        __doc__,
        "  anytime tune --config recipes/fast_cifar10.yaml --space space.yaml --trials 40 --runs runs/search\n"
        "  anytime train --config runs/search/best.yaml\n"
        f"  optuna-dashboard runs/search/journal.log\n\n{SPACE}",
    )
    parser.add_argument("--config", required=True, type=Path, metavar="RECIPE", help="the recipe whose options are searched")
    parser.add_argument("--space", required=True, type=Path, metavar="FILE", help="the options and their values, see below")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="how many sets are tried in all (default: 40)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="where everything goes (default: runs/tune_RECIPE)")
    metrics = "error: the average validation error over answers by cost; or val/loss, val/accuracy, val/accuracy_T"
    parser.add_argument("--metric", default="error", metavar="NAME", help=f"{metrics} (default: error)")
    parser.add_trust()
    options, flags = parser.parse_known_args(arguments)
    if options.trials < 1:
        parser.error(f"--trials must be at least 1, got {options.trials}")
    if importlib.util.find_spec("optuna") is None:
        raise ImportError("a search needs optuna: pip install 'anytime-nets[tune]'")
    from anytime.studies.executors.subprocess import explaining_stops
    from anytime.studies.tuning.search import BEST, FIGURE, Search
    from anytime.studies.tuning.space import read_space

    folder = options.runs or Path("runs") / f"tune_{options.config.stem}"
    space = read_space(options.space)
    search = Search(options.config, options.space, space, tuple(flags), folder, options.metric, options.trust)
    with explaining_stops(), names_from(f"{options.config} or {options.space}", options.trust, typed_paths(flags)):
        found = search.run(options.trials, say=lambda line: print(printable(line), flush=True))
    for line in (
        f"chosen on validation: {found}",
        f"wrote {folder / BEST} and {folder / FIGURE}",
        f"next: anytime train --config {folder / BEST}",
    ):
        print(printable(line))
    return 0
