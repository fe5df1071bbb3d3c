"""The command `anytime`: its verbs, and its exit codes: 0 done, 1 failure, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from anytime.support.elsewhere import import_elsewhere
from anytime.support.names import nearest
from anytime.support.text import one_line
from anytime.support.trust import only_typed

COMMANDS = {  # each verb is a module of `anytime.commands`, imported only when it is used
    "demo": "Train AnytimeNet on handwritten digits in about a minute and watch it answer under deadlines.",
    "train": "Train a model on a data set from a recipe or flags.",
    "tune": "Search for the best options of a training, judged on validation images.",
    "evaluate": "Record a trained model's answers on a data set; print and save metrics, figures and a report.",
    "compare": "Compare evaluated runs in one table and one figure, over MACs and over measured ms.",
    "fit": "Fit a stopping rule to a budget or to an accepted loss of accuracy; save it with the model.",
    "predict": "Classify images with a trained model, showing the answer as it improves.",
    "profile": "Measure how long each step of a trained model takes on this machine, including the slow tail.",
    "replay": "Decide once more what a predictor recorded, with another rule, profile or engine.",
    "serve": "Answer images over HTTP; under overload with less depth, by the deadline.",
    "export": "Write a trained model as one graph per step for another engine, such as ONNX Runtime.",
    "exits": "List the places where a backbone can be cut into stages, and what each costs.",
    "study": "Reproduce tables and figures of a paper, with the paper's numbers beside ours.",
    "models": "List the models to train and the trained models, or describe one.",
    "datasets": "List the data sets and whether they are on this machine.",
}


_TOO_LITTLE_MEMORY = ("can't allocate memory", "out of memory")  # what torch's RuntimeError says


def _help() -> str:
    lines = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return (
        "usage: anytime COMMAND [options]\n\n"
        "Neural networks that hold an answer at any moment, and answer better the longer they may compute.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\nstart with `anytime demo`; `anytime COMMAND --help` explains a command.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Without `argv` it is this process's own command: then the processes that it starts, such as those of other devices and
    workers that read data, do not find modules in the working directory either, unless the user has set PYTHONSAFEPATH.
    Nor does what libraries look for there run or count, see `anytime.support.elsewhere`.
    """
    if argv is None:
        import_elsewhere()
        _make_children_safe()
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
    with _warnings_in_one_line(name), only_typed(rest):
        return _guarded(name, rest)


def _make_children_safe() -> None:
    """Keeps the working directory off the path of child processes; the folder of a user's own script stays on it."""
    if "PYTHONSAFEPATH" in os.environ:
        return
    os.environ["PYTHONSAFEPATH"] = "1"
    folder, name = os.path.split(os.path.realpath(sys.argv[0]))
    if sys.modules["__main__"].__spec__ is None and os.path.splitext(name)[0] != "anytime" and folder in sys.path:
        before = os.environ.get("PYTHONPATH")  # a user's own script, which Lightning starts anew for each device
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *([before] if before else [])])


@contextmanager
def _warnings_in_one_line(name: str) -> Iterator[None]:
    """Inside, a warning is one line on stderr, without the place in the code that gave it."""

    def line(message: Warning | str, *_: object, **__: object) -> str:
        return f"anytime {name}: warning: {one_line(message if isinstance(message, Warning) else UserWarning(message))}\n"

    before, warnings.formatwarning = warnings.formatwarning, line
    try:
        yield
    finally:
        warnings.formatwarning = before


def _guarded(name: str, arguments: Sequence[str]) -> int:
    """Runs a command; an expected error becomes one sentence on stderr and an exit code, an unexpected one propagates."""
    try:
        return importlib.import_module(f"anytime.commands.{name}").run(arguments)
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
        known = known or (isinstance(error, RuntimeError) and any(text in str(error) for text in _TOO_LITTLE_MEMORY))
        if not known or os.environ.get("ANYTIME_TRACEBACK"):
            raise
        print(f"anytime {name}: error: {_sentence(error)}", file=sys.stderr)
        return code or 1


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return one_line(OSError(f"{error.strerror}: {error.filename}" if error.filename else error.strerror))
    return one_line(error)
