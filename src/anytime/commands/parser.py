"""The argument parser of every command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from anytime.support.names import nearest


class Parser(argparse.ArgumentParser):
    """Errors are one line, and an unknown option gets the nearest valid one."""

    def __init__(self, command: str, description: str, examples: str = "") -> None:
        super().__init__(
            prog=f"anytime {command}",
            description=description,
            epilog=examples and f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            valid = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            self.error(f"unknown argument {unknown[0]}{nearest(unknown[0], valid)}")
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


RUN_HELP = "a run directory, or the name of a pretrained model (see `anytime models`)"


def check_trained(parser: Parser, name: str) -> None:
    """Refuses what is neither a run directory nor a pretrained model."""
    from anytime.pretrained import list_pretrained

    if not Path(name).is_dir() and name not in list_pretrained():
        valid = [*list_pretrained(), *(str(path.parent) for path in sorted(Path().glob("runs/*/run.json")))]
        hint = nearest(name, valid) if valid else ""
        parser.error(f"there is no run directory and no pretrained model {name!r}{hint}")


def check_device(parser: Parser, name: str) -> None:
    """Refuses a device that this machine does not have."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"device {name!r} is not available here: {str(error).splitlines()[0]}")
