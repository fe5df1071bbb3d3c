"""Train a model on a data set from a recipe or flags; `train_help` holds the help."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from anytime.commands.parser import Parser
from anytime.commands.train_help import help_wanted
from anytime.support.text import printable
from anytime.support.trust import names_from, typed_paths
from anytime.training.config import UsageError, parse
from anytime.training.launch import claim, is_main_process, resume_training, start_training


def run(arguments: Sequence[str]) -> int:
    if text := help_wanted(arguments):
        print(text)
        return 0
    parser = Parser("train", "")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--resume", type=Path)
    parser.add_trust()
    options, flags = parser.parse_known_args(arguments)
    if options.resume is None:
        source = names_from(", ".join(options.config), options.trust, typed_paths(flags))
        with source if options.config or options.trust else contextlib.nullcontext():
            folder = start_training(parse(flags, options.config), options.run, options.overwrite)
    elif options.config or options.run or options.overwrite:
        raise UsageError(f"--resume {options.resume} continues the run there; leave out --config, --run and --overwrite")
    else:
        folder = resume_training(options.resume, options.trust, flags)
    if is_main_process():
        lines = (claim(folder), f"wrote {folder}", f"next: anytime evaluate {folder}")
        print(*(printable(line) for line in lines if line), sep="\n")
    return 0
