"""What `anytime study` does: a paper's tables and figures made again, from trainings to numbers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anytime.commands.parser import Parser
from anytime.studies.executors.subprocess import TrainingStopped, log_end
from anytime.studies.runner import Run, run_all, standing
from anytime.studies.study import Study, find_study, list_studies
from anytime.support.names import nearest
from anytime.training.config import top_level_keys

KINDS = ("figure", "table")


def run(arguments: Sequence[str]) -> int:
    """Train and measure what a paper's tables and figures show, ours beside the paper's."""
    parser = Parser(
        "study",
        "Make tables and figures of a paper again, the paper's numbers beside ours. Trains what is missing; the same command\n"
        "goes on where it was stopped. Other options, e.g. --epochs=1, are those of `anytime train`, for every training.",
        "  anytime study                                    what there is\n"
        "  anytime study iuzzolino2021 --figure 4\n"
        "  anytime study iuzzolino2021 --figure 3 --data cifar100 --scale full --dry-run",
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=f"one of: {', '.join(list_studies())}")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", nargs="+", default=[], metavar="N", help=f"these {kind}s only")
    parser.add_argument("--data", metavar="NAME", help="data set (default: the study's first)")
    parser.add_argument("--scale", default="cpu", help="cpu: minutes a training; full: as in the paper (default: cpu)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="seeds (default: the study's)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="where run directories go (default: runs/STUDY)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: results/STUDY)")
    parser.add_argument("--dry-run", action="store_true", help="print the trainings that are missing, as commands")
    options, flags = parser.parse_known_args(arguments)
    if options.study is None:
        print("\n".join(f"{name}: {_described(find_study(name))}" for name in list_studies()))
        return 0
    found = _checked(parser, options, flags)
    data = options.data or found.data[options.scale][0]
    seeds = options.seeds or found.seeds[options.scale]
    wanted = [f"{kind} {number}" for kind in KINDS for number in getattr(options, kind)] or list(found.items)
    folder = options.runs or Path("runs") / options.study
    needed = {name: found.items[name].runs(data, options.scale, seeds) for name in wanted}
    runs = [replace(run, flags=(*run.flags, *flags)) for item in needed.values() for run in item]
    runs.sort(key=lambda run: run.seed)  # so that the first seed of everything is there first
    if options.dry_run:
        return _print_commands(runs, folder)
    try:
        traces = run_all(runs, folder)
    except TrainingStopped as stopped:
        if stopped.log.is_file():
            print(*log_end(stopped.log), sep="\n", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    for name in wanted:
        result = found.items[name].make(traces, data)
        out = options.out or Path("results") / options.study
        files = result.write(out / f"{name.replace(' ', '_')}_{data}_{options.scale}")
        print(f"\n{name.capitalize()}: {found.items[name].title}\n\n{result.text}\n\nwrote {', '.join(map(str, files))}")
    return 0


def _checked(parser: Parser, options: Any, flags: Sequence[str]) -> Study:
    """The study that is asked for; ends the command with a sentence where the options make no sense."""
    try:
        found = find_study(options.study)
    except ValueError as error:
        parser.error(str(error))
    if options.scale not in found.data:
        parser.error(f"unknown --scale {options.scale!r}{nearest(options.scale, found.data)}")
    valid = found.data[options.scale]
    if options.data is not None and options.data not in valid:
        parser.error(f"{options.study} has no --data {options.data!r} at scale {options.scale}{nearest(options.data, valid)}")
    for kind in KINDS:
        for number in getattr(options, kind):
            if f"{kind} {number}" not in found.items:
                parser.error(f"{options.study} has no {kind} {number}; valid: {', '.join(found.items)}")
    if flags and not flags[0].startswith("--"):
        parser.error(f"unknown argument {flags[0]}")
    own = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    for flag in flags:
        name = flag.partition("=")[0]
        if name == "--seed":
            parser.error("give the seeds by --seeds")
        if any(f"{name}.".startswith(f"--{key}.") for key in found.fixed):
            parser.error(f"{name} cannot be set: it is what {options.study} compares")
        if name.startswith("--") and name[2:].partition(".")[0] not in top_level_keys():
            parser.error(f"unknown argument {name}{nearest(name, [*own, *(f'--{key}' for key in top_level_keys())])}")
    return found


def _print_commands(runs: Sequence[Run], folder: Path) -> int:
    for run in {run.name: run for run in runs}.values():
        stand = standing(run, folder)
        command = shlex.join(["anytime", "train", *run.arguments(folder, stand)])
        print(f"# finished: {folder / run.name}" if stand == "finished" else command)
    return 0


def _described(found: Study) -> str:
    lines = [found.paper, *(f"  --{name:<12} {item.title}" for name, item in found.items.items())]
    lines += [f"  --scale {scale:<6} --data {' or '.join(names)}" for scale, names in found.data.items()]
    return "\n".join(lines)
