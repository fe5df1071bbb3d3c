"""`anytime train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anytime.commands.parser import Parser


def run(arguments: Sequence[str]) -> int:
    """Train a model on a data set by recipe or flags."""
    from anytime.commands.train_help import help_wanted
    from anytime.training.config import UsageError, parse
    from anytime.training.launch import is_main_process, resume_training, start_training

    if text := help_wanted(arguments):
        print(text)
        return 0
    parser = Parser("train", "")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--resume", type=Path)
    options, flags = parser.parse_known_args(arguments)
    if options.resume is None:
        folder = start_training(parse(flags, options.config), options.run, options.overwrite)
    elif flags or options.config or options.run or options.overwrite:
        raise UsageError(f"--resume {options.resume} goes on with the run as it was; leave out the other options")
    else:
        folder = resume_training(options.resume)
    if is_main_process():
        print(f"wrote {folder}\nnext: anytime evaluate {folder}")
    return 0
