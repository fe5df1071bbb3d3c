"""The command `anytime`: one function per subcommand; exit codes 0 done, 1 failure, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytime.commands.compare import compare
from anytime.commands.evaluate import evaluate
from anytime.commands.parser import Parser
from anytime.commands.train import train
from anytime.support.names import nearest

if TYPE_CHECKING:
    pass


def predict(arguments: Sequence[str]) -> int:
    """Answer images with a trained model, showing the answer as it improves."""
    from anytime.commands.predict import predict_command

    return predict_command(arguments)


def profile(arguments: Sequence[str]) -> int:
    """Measure how long each step of a trained model takes on this machine, with its tail."""
    from anytime.commands.profile import profile_command

    return profile_command(arguments)


def fit(arguments: Sequence[str]) -> int:
    """Fit a stopping rule to a budget, or to a loss of accuracy that it keeps below; save it with the model."""
    from anytime.commands.fit import fit_command

    return fit_command(arguments)


def models(arguments: Sequence[str]) -> int:
    """List models: families to train, and trained ones; or the arguments of one."""
    parser = Parser(
        "models",
        "List the models that can be trained, and the trained ones; or describe one.",
        "  anytime models\n  anytime models anytimenet",
    )
    parser.add_argument("name", nargs="?", help="describe this model: its arguments, parameters and steps")
    options = parser.parse_args(arguments)
    from anytime.commands.models import describe_model, list_all_models, list_models, list_pretrained
    from anytime.registry import find_factory

    known = [*list_models(), *list_pretrained()]
    if options.name and options.name not in known:
        if "." not in options.name:
            parser.error(f"unknown model {options.name!r}{nearest(options.name, known)}")
        try:
            find_factory(options.name)
        except ValueError as error:
            parser.error(str(error))
    print(describe_model(options.name) if options.name else list_all_models())
    return 0


def datasets(arguments: Sequence[str]) -> int:
    """List data sets, and whether they are on this machine."""
    parser = Parser("datasets", "List the data sets, where they come from, and whether they are on this machine.")
    parser.add_argument("--root", type=Path, help="folder to look in (default: $ANYTIME_DATA or ~/.cache/anytime/data)")
    options = parser.parse_args(arguments)
    from anytime.commands.datasets import list_all_datasets

    print(list_all_datasets(options.root))
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Train AnytimeNet on handwritten digits in about a minute, and watch it answer under deadlines."""
    parser = Parser(
        "demo",
        "Train a small AnytimeNet on the embedded handwritten digits (about a minute on 2 cores), measure it,\n"
        "write a report, and answer held-out images under growing deadlines. Needs no download.",
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/demo"), metavar="DIR", help="where to write (default: runs/demo)"
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in DIR even if it is no former demo")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    from anytime.commands.demo import run_demo

    run_demo(options.run, options.epochs, options.overwrite)
    return 0


def study(arguments: Sequence[str]) -> int:
    """Make tables and figures of a paper again, the paper's numbers beside ours."""
    from anytime.commands.study import study as run_study

    return run_study(arguments)


def exits(arguments: Sequence[str]) -> int:
    """List the places where a backbone can be cut into stages, with their cost."""
    from anytime.commands.exits import exits_command

    return exits_command(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command
    for command in (demo, train, evaluate, compare, fit, predict, profile, exits, study, models, datasets)
}


def _help() -> str:
    lines = [f"  {name:<10} {(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return (
        "usage: anytime COMMAND [options]\n\n"
        "Neural networks that hold an answer at any moment, and answer better the longer they may compute.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\nstart with `anytime demo`; `anytime COMMAND --help` explains each.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from anytime.version import __version__

        print(f"anytime {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"anytime: unknown command {name!r}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's own, named by import path
    return _guarded(lambda: COMMANDS[name](rest), name)


def _guarded(command: Callable[[], int], name: str) -> int:
    """Turns errors into one sentence on stderr and an exit code; those that nobody expected stay as they are."""
    try:
        return command()
    except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong usage
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"\nanytime {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code = getattr(error, "exit_code", None)
        known = code is not None or isinstance(error, (ValueError, TypeError, OSError, ImportError, MemoryError))
        if not known or os.environ.get("ANYTIME_TRACEBACK"):
            raise
        print(f"anytime {name}: error: {_sentence(error)}", file=sys.stderr)
        return code or 1


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
