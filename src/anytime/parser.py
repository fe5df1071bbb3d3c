"""The argument parser of every command."""

from __future__ import annotations

import argparse
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
