"""Reproduce tables and figures of a paper, with the paper's numbers beside ours. Missing trainings are run; the same command
continues an interrupted study. Other options, e.g. --epochs=1, are passed to `anytime train` for every training.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from anytime.commands.parser import Parser
from anytime.studies.estimate import training_seconds
from anytime.studies.executors.choice import find_executor
from anytime.studies.executors.subprocess import explaining_stops
from anytime.studies.runner import TrainingRun, run_all, run_status, time_text
from anytime.studies.study import Study, find_study, list_studies, study_command
from anytime.support.names import nearest
from anytime.support.owned import check_own
from anytime.support.text import printable
from anytime.support.trust import names_from
from anytime.training.config import top_level_keys

KINDS = ("figure", "table")
SAME_TIME = {"--data.noise", "--data.fold", "--model.norm_eps", "--model.norm_momentum"}
"""Flags whose value changes the time of a training by too little to measure it again."""


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "study",
        __doc__,
        "  anytime study                                    lists the studies\n"
        "  anytime study iuzzolino2021 --figure 4\n"
        "  anytime study iuzzolino2021 --figure 3 --data cifar100 --scale full --dry-run",
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=f"one of: {', '.join(list_studies())}")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", nargs="+", default=[], metavar="N", help=f"only these {kind}s")
    parser.add_argument("--data", metavar="NAME", help="data set (default: the study's first)")
    parser.add_argument("--scale", help="cpu, fast: minutes per training; full: as in the paper (default: the study's first)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="seeds (default: the study's)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="where run directories go (default: runs/STUDY)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: results/STUDY)")
    where = "local:N, N trainings at once on this machine, or ray[:ADDRESS] (default: one after the other)"
    parser.add_argument("--executor", metavar="WHERE", help=where)
    parser.add_argument("--finished", action="store_true", help="train nothing: use the trainings that are finished")
    parser.add_argument("--dry-run", action="store_true", help="print the missing trainings: command, what it serves, time")
    parser.add_trust()
    options, flags = parser.parse_known_args(arguments)
    if options.study is None:
        print("\n".join(f"{name}: {_description(find_study(name))}" for name in list_studies()))
        return 0
    with names_from("the study's runs", trust=True) if options.trust else contextlib.nullcontext():
        return _make(parser, options, flags)


def _make(parser: Parser, options: Any, flags: Sequence[str]) -> int:
    """Makes the tables and figures that the options ask for; returns the exit code."""
    study = _checked(parser, options, flags)
    executor = None if options.executor is None else find_executor(options.executor)
    sets = _data_of_each(parser, study, options)
    seeds = options.seeds or study.seeds[options.scale]
    folder = options.runs or Path("runs") / options.study
    needed = {
        name: [replace(run, flags=(*run.flags, *flags)) for run in study.items[name].runs(data, options.scale, seeds)]
        for name, data in sets.items()
    }
    out = options.out or Path("results") / options.study
    stems = {name: out / f"{name.replace(' ', '_')}_{data}_{options.scale}" for name, data in sets.items()}
    kept = {name: keep(_file(stems[name], "json"), needed[name]) for name in sets if (keep := study.items[name].kept)}
    before = {name for earlier in kept.values() for name in earlier.names}
    runs = [run for each in needed.values() for run in each if run.name not in before]
    runs.sort(key=lambda run: run.seed)  # the first seed of everything comes first
    for name, earlier in kept.items():
        if earlier.names:
            there = ", ".join(sorted(earlier.names))
            print(printable(f"# in {_file(stems[name], 'json')}, so not trained again: {there}"))
        _name_dropped(_file(stems[name], "json"), earlier.dropped)
    if options.dry_run:
        serves: dict[str, list[str]] = {}
        for name, each in needed.items():
            for run in each:
                serves.setdefault(run.name, []).extend([name] * (name not in serves.get(run.name, [])))
        _show_plan(list({run.name: run for run in runs}.values()), serves, folder)
        return 0
    if options.finished:
        runs = [run for run in runs if run_status(run, folder) == "finished"]
        possible = _possible(study, needed, before | {run.name for run in runs})
        sets = {name: data for name, data in sets.items() if name in possible}
    check_own(*(_file(stems[name], kind) for name in sets for kind in ("json", "png")))
    with explaining_stops():
        traces = run_all(runs, folder, executor=executor)
    for name, data in sets.items():
        more = []
        if keep := study.items[name].kept:  # read again: another process may have added to it during the trainings
            more = [keep(_file(stems[name], "json"), needed[name])]
            _name_dropped(_file(stems[name], "json"), [part for part in more[0].dropped if part not in kept[name].dropped])
        result = study.items[name].make(traces, data, *more)
        made_by = study_command(options.study, name, data, options.scale, seeds, flags)
        files = result.write(stems[name], made_by)
        written = printable(", ".join(map(str, files)))
        print(f"\n{name.capitalize()}: {study.items[name].title}\n\n{result.text}\n\nwrote {written}")
    return 0


def _name_dropped(file: Path, parts: Sequence[str]) -> None:
    """Says which parts of an earlier result will not be in the new one."""
    if parts:
        print(printable(f"# in {file}, but changed or no longer in this study, so left out: {', '.join(parts)}"))


def _file(stem: Path, kind: str) -> Path:
    """The file of a result: `stem.json`, `stem.png`."""
    return stem.with_name(f"{stem.name}.{kind}")


def _data_of_each(parser: Parser, study: Study, options: Any) -> dict[str, str]:
    """The data set of each table and figure: the one typed, else the study's first that the item is of.

    Ends the command if an item was asked for and is not of the data set that was typed.
    """
    valid, found = study.data[options.scale], dict[str, str]()
    asked = [f"{kind} {number}" for kind in KINDS for number in getattr(options, kind)]
    for name in asked or study.items:
        of = study.items[name].data or valid
        fitting = [data for data in valid if data in of]
        wanted = options.data or (fitting or valid)[0]
        if wanted in fitting:
            found[name] = wanted
        elif asked:
            parser.error(f"{name} of {options.study} is of --data {' or '.join(of)}, got {wanted}")
        else:
            print(f"{name} is left out: it is of --data {' or '.join(of)}")
    return found


def _possible(study: Study, needed: Mapping[str, Sequence[TrainingRun]], finished: Set[str]) -> list[str]:
    """The tables and figures that the finished trainings suffice for; prints the others and what they lack."""
    possible = []
    for name, trainings in needed.items():
        item, runs = study.items[name], {run.name for run in trainings}
        if runs <= finished or (item.partial and runs & finished):
            possible.append(name)
        else:
            print(f"{name} is left out: {len(runs - finished)} of its {len(runs)} trainings are not finished")
    return possible


def _show_plan(runs: Sequence[TrainingRun], serves: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Prints each training as a command, with what it serves and how long it takes; other seeds take the same time."""
    if not runs:
        print("# nothing to train")
    known: dict[tuple[Any, ...], float | None] = {}
    left: list[float | None] = []
    for run in runs:
        items, status = ", ".join(serves[run.name]), run_status(run, folder)
        if status == "finished":
            print(printable(f"# finished: {folder / run.name}  # {items}"))
            continue
        key = run.recipe, tuple(flag for flag in run.flags if flag.partition("=")[0] not in SAME_TIME)
        known[key] = known[key] if key in known else training_seconds(run.config())
        left.append(known[key])
        command = shlex.join(["anytime", "train", *run.arguments(folder, status)])
        print(f"{command}  # {items}; {_about(known[key], 'at most' if status == 'resume' else 'about')}", flush=True)
    if left:
        whole = None if None in left else sum(filter(None, left))
        how = "" if whole is None else " one after the other, on one core or the GPU, uncompiled"
        print(f"# {len(left)} to train, {_about(whole)}{how}")


def _about(seconds: float | None, how: str = "about") -> str:
    return "time unknown until the data can be read" if seconds is None else f"{how} {time_text(seconds)}"


def _checked(parser: Parser, options: Any, flags: Sequence[str]) -> Study:
    """The requested study; ends the command if it does not have what the options ask for."""
    try:
        study = find_study(options.study)
    except ValueError as error:
        parser.error(str(error))
    options.scale = options.scale or next(iter(study.data))
    if options.scale not in study.data:
        parser.error(f"unknown --scale {options.scale!r}{nearest(options.scale, study.data)}")
    valid = study.data[options.scale]
    if options.data is not None and options.data not in valid:
        parser.error(f"{options.study} has no --data {options.data!r} at scale {options.scale}{nearest(options.data, valid)}")
    for kind in KINDS:
        for number in getattr(options, kind):
            if f"{kind} {number}" not in study.items:
                parser.error(f"{options.study} has no {kind} {number}; valid: {', '.join(study.items)}")
    if flags and not flags[0].startswith("--"):
        parser.error(f"unknown argument {flags[0]}")
    train_options = [f"--{key}" for key in top_level_keys()]
    for flag in flags:
        name = flag.partition("=")[0]
        if name == "--seed":
            parser.error("use --seeds to set the seeds")
        if any(f"{name}.".startswith(f"--{key}.") for key in study.fixed):
            parser.error(f"{name} cannot be set: it is what {options.study} compares")
        if name.startswith("--") and name.partition(".")[0] not in train_options:
            parser.error(f"unknown argument {name}{nearest(name, [*parser.flags(), *train_options])}")
    return study


def _description(study: Study) -> str:
    lines = [study.paper]
    for name, item in study.items.items():
        of = f" (--data {' or '.join(item.data)})" if item.data else ""
        lines.append(f"  --{name:<12} {item.title}{of}")
    lines += [f"  --scale {scale:<6} --data {' or '.join(names)}" for scale, names in study.data.items()]
    return "\n".join(lines)
