"""The argument parser of all commands, with the arguments that several of them share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from anytime.pretrained import list_pretrained
from anytime.support.files import check_no_file_above
from anytime.support.names import nearest
from anytime.support.text import one_line


class Parser(argparse.ArgumentParser):
    """Reports an error in one line and suggests the nearest option for an unknown one."""

    def __init__(self, command: str, description: str | None, examples: str = "") -> None:
        super().__init__(
            prog=f"anytime {command}",
            description=description,
            epilog=examples and f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = self.parse_known_args(self._joined(sys.argv[1:] if args is None else args), namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}{nearest(unknown[0], self.flags())}")
        return options

    def _joined(self, args: Sequence[str]) -> list[str]:
        """The arguments with `--option -5ms` as `--option=-5ms`, because argparse takes `-5ms` and `-inf` for options."""
        takes_value = {name for action in self._actions if action.nargs != 0 for name in action.option_strings}
        joined: list[str] = []
        for arg in args:
            if joined and joined[-1] in takes_value and re.match(r"-(\.?\d|inf)", arg):
                joined[-1] += f"={arg}"
            else:
                joined.append(arg)
        return joined

    def flags(self) -> list[str]:
        """The long options."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(ValueError(message))} (see `{self.prog} --help`)\n")

    def add_model(self, name: str) -> None:
        """Adds a trained model as a positional argument, for `check_model`."""
        text = "a run directory, or the name of a pretrained model (see `anytime models`)"
        self.add_argument(name, metavar="RUN|NAME", help=text)
        self.add_trust()

    def add_trust(self) -> None:
        """Adds `--trust`."""
        what = "import custom classes named in files, and load compiled exports; this can run any code"
        self.add_argument("--trust", action="store_true", help=what)

    def add_overwrite(self, what: str) -> None:
        """Adds `--overwrite`, for `check_free`."""
        self.add_argument("--overwrite", action="store_true", help=f"replace {what} if it exists")

    def check_free(self, path: Path, option: str, overwrite: bool) -> None:
        """Ends the command if `path`, given by `option`, exists and may not be replaced, or cannot be made."""
        try:
            check_no_file_above(path)
        except ValueError as error:
            self.error(str(error))
        if os.path.lexists(path) and not overwrite:
            self.error(f"{path} exists; give another {option}, or --overwrite to replace it")

    def add_data_folder(self, what: str = "the data if they are missing") -> None:
        """Adds `--root` and `--download`, which fetches `what`."""
        self.add_argument("--root", type=Path, help="folder of the data (default: the recipe's)")
        self.add_argument("--download", action="store_true", help=f"download {what}")

    def add_device(self, purpose: str = "where to run") -> None:
        """Adds `--device`, for `check_device`."""
        self.add_argument("--device", default="cpu", help=f"{purpose}, e.g. cuda (default: cpu)")

    def check_model(self, name: str) -> None:
        """Ends the command unless `name` is a run directory or a pretrained model."""
        if not Path(name).is_dir() and name not in list_pretrained():
            valid = [*list_pretrained(), *(str(path.parent) for path in sorted(Path().glob("runs/*/run.json")))]
            hint = nearest(name, valid) if valid else ""
            self.error(f"there is no run directory and no pretrained model {name!r}{hint}")

    def check_device(self, name: str) -> None:
        """Ends the command unless this machine has the device."""
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            self.error(f"device {name!r} is not available here: {str(error).splitlines()[0]}")
