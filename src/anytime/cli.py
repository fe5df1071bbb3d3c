"""The command `anytime`: one function per subcommand; exit codes 0 done, 1 failure, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from anytime.model import AnytimeModel
    from anytime.trace import Trace

Parser = argparse.ArgumentParser
RUN_HELP = "a run directory, or the name of a pretrained model (see `anytime models`)"


def _parser(command: str, description: str, epilog: str = "") -> Parser:
    return Parser(
        prog=f"anytime {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def train(arguments: Sequence[str]) -> int:
    """Train a model on a data set by recipe or flags."""
    parser = _parser(
        "train",
        "Train a model on a data set, by recipe or flags. Every constructor argument can be set.",
        "examples:\n"
        "  anytime train --model anytimenet --data digits --epochs 20\n"
        "  anytime train --config recipes/anytimenet_cifar10.yaml --data.root ~/data --epochs 5 --run runs/short\n"
        "  anytime train --model anytimenet --model.scheme '[1,7]' --objective weighted --objective.weights constant \\\n"
        "                --data cifar10 --data.classes '[cat,dog]' --optimizer adamw --optimizer.lr 0.001\n"
        "  anytime train --model mypackage.MyNet --data mypackage.MyData\n"
        "  anytime train --resume runs/short\n"
        "  torchrun --nproc-per-node 2 -m anytime train --model anytimenet --data digits --strategy ddp\n\n"
        "arguments of one class: --model.help NAME, --data.help NAME, --objective.help NAME, --optimizer.help NAME,\n"
        "--schedule.help NAME; all other options:\n\n",
    )
    parser.add_argument("--config", action="append", default=[], metavar="RECIPE", help="a YAML recipe; flags override it")
    parser.add_argument("--run", type=Path, metavar="DIR", help="where to write (default: runs/MODEL_DATA)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run directory if it exists")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run, from its last checkpoint")
    if {"-h", "--help"} & set(arguments):
        from anytime.training.config import build_parser

        parser.print_help()
        print(build_parser().format_help().partition("\n\n")[2])
        return 0
    known, flags = parser.parse_known_args(arguments)
    from anytime.training.command import resume_training, start_training
    from anytime.training.config import UsageError, parse

    if known.resume is not None:
        if flags or known.config or known.run or known.overwrite:
            raise UsageError(f"--resume {known.resume} goes on with the run as it was; leave out the other options")
        run = resume_training(known.resume)
    else:
        run = start_training(parse(flags, known.config), known.run, known.overwrite)
    if run is not None:
        print(f"wrote {run}\nnext: anytime evaluate {run}")
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Record what a trained model says on a data set; print and save metrics, figures and a report."""
    parser = _parser(
        "evaluate",
        "Record a trace of a trained model on the test images; print and save metrics, figures, report.html.",
        "example:\n  anytime evaluate runs/demo\n  anytime evaluate anytimenet_cifar10 --root ~/data",
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which images (default: test)")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the recipe's")
    parser.add_argument("--device", default="cpu", help="where to run, e.g. cuda (default: cpu)")
    parser.add_argument("--out", type=Path, help="where to write (default: the run directory, or runs/NAME)")
    options = parser.parse_args(arguments)
    from anytime.analysis.summary import STEP_COLUMNS
    from anytime.analysis.tables import format_table
    from anytime.evaluation import evaluate_run

    result = evaluate_run(options.run, options.part, options.root, options.device, options.out)
    numbers = result.numbers
    print(format_table(numbers["steps"], STEP_COLUMNS))
    errors = numbers["error_at_cost"]["macs"]
    print(f"\naverage error AE {numbers['average_error']:.2%}, timeliness {numbers['timeliness']:.2%}")
    print("error at share of MACs: " + ", ".join(f"{k}: {'–' if v is None else f'{v:.2%}'}" for k, v in errors.items()))
    print(f"wrote {result.trace}, {result.metrics}, {result.report}")
    return 0


def compare(arguments: Sequence[str]) -> int:
    """Compare evaluated runs in one table and one figure, over MACs and over measured ms."""
    parser = _parser("compare", "One table and one figure of several evaluated runs, over MACs and over measured ms.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directories with a trace (`anytime evaluate RUN` makes it)"
    )
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="whose traces (default: test)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare.png"), help="the figure (default: runs/compare.png)")
    options = parser.parse_args(arguments)
    from anytime import plots
    from anytime.analysis.summary import COMPARISON_COLUMNS, comparison
    from anytime.analysis.tables import format_table
    from anytime.evaluation import stored_traces

    traces: dict[str, Trace] = stored_traces(options.runs, options.part)
    print(format_table(comparison(traces), COMPARISON_COLUMNS))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plots.compare(traces).savefig(options.out, dpi=150)
    print(f"wrote {options.out}")
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Answer images with a trained model, showing the answer as it improves."""
    parser = _parser(
        "predict",
        "Answer images with a trained model; the answer is shown as it improves, until the deadline.",
        "examples:\n  anytime predict anytimenet_cifar10 photo.png --deadline 5ms\n  anytime predict runs/demo a.png b.png",
    )
    parser.add_argument("model", metavar="RUN|NAME", help=RUN_HELP)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--deadline", metavar="TIME", help="time for each image, e.g. 5ms, 0.2s, 800us (default: none)")
    parser.add_argument("--device", default="cpu", help="where to run, e.g. cuda (default: cpu)")
    parser.add_argument("--top", type=int, default=1, help="classes to show per answer (default: 1)")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top must be at least 1, got {options.top}")
    from anytime.runtime import parse_seconds

    try:
        deadline = parse_seconds(options.deadline) if options.deadline else None
    except ValueError as error:
        parser.error(str(error))
    from anytime.data import read_image

    model = _load(options.model).to(_device(options.device))
    size = tuple(model.metadata.get("input_size") or (model.in_channels, 32, 32))
    images = [(path, read_image(path, size)) for path in options.images]
    return _predict(model, images, deadline, options.top)


def _predict(model: AnytimeModel, images: list[tuple[Path, torch.Tensor]], deadline: float | None, top: int) -> int:
    from anytime.analysis.tables import macs_text
    from anytime.cost import step_macs, step_seconds
    from anytime.runtime import Predictor

    names = model.metadata.get("class_names") or [str(k) for k in range(model.num_classes)]
    size = tuple(images[0][1].shape)
    macs = step_macs(model, size)  # type: ignore[arg-type]
    predictor = Predictor(model, step_seconds(model, size))  # type: ignore[arg-type]
    device = next(model.parameters()).device
    given = "no deadline" if deadline is None else f"deadline {deadline * 1e3:g} ms"
    for path, image in images:
        print(f"{path} ({given})")
        for answer in predictor.stream(image[None].to(device), deadline):
            best = answer.probabilities[0].topk(min(top, len(names)))
            text = ", ".join(f"{names[k]} ({p:.0%})" for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True))
            cost = f"{macs_text(macs[answer.step - 1]):>8} MACs  {answer.elapsed * 1e3:7.2f} ms"
            print(
                f"  step {answer.step}/{model.num_steps}  {cost}  {text}{'  MISSED' if answer.missed else ''}",
                flush=True,
            )
    return 0


def models(arguments: Sequence[str]) -> int:
    """List models: families to train, and trained ones; or the arguments of one."""
    parser = _parser("models", "List the models that can be trained, and the trained ones; or describe one.")
    parser.add_argument("name", nargs="?", help="describe this model: its arguments, parameters and steps")
    options = parser.parse_args(arguments)
    from anytime.listing import describe_model, list_all_models

    print(describe_model(options.name) if options.name else list_all_models())
    return 0


def datasets(arguments: Sequence[str]) -> int:
    """List data sets, and whether they are on this machine."""
    parser = _parser("datasets", "List the data sets, where they come from, and whether they are on this machine.")
    parser.add_argument("--root", type=Path, help="folder to look in (default: $ANYTIME_DATA or ~/.cache/anytime/data)")
    options = parser.parse_args(arguments)
    from anytime.listing import list_all_datasets

    print(list_all_datasets(options.root))
    return 0


def demo(arguments: Sequence[str]) -> int:
    """Train AnytimeNet on handwritten digits in about a minute, and watch it answer under deadlines."""
    parser = _parser(
        "demo",
        "Train a small AnytimeNet on the embedded handwritten digits (about a minute on 2 cores), measure it,\n"
        "write a report, and answer held-out images under growing deadlines. Needs no download.",
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="where to write (default: runs/demo)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    from anytime.demo import run_demo

    return run_demo(options.run, options.epochs)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here: {str(error).splitlines()[0]}") from error
    return device


def _load(name: str) -> AnytimeModel:
    from anytime.pretrained import load

    return load(name)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    command.__name__: command for command in (demo, train, evaluate, compare, predict, models, datasets)
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
        from difflib import get_close_matches

        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `anytime {close[0]}`?" if close else f"commands: {', '.join(COMMANDS)}"
        print(f"anytime: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    return _guarded(lambda: COMMANDS[name](rest), name)


def _guarded(command: Callable[[], int], name: str) -> int:
    """Turns errors into one sentence on stderr and an exit code."""
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
        code = getattr(error, "exit_code", 1)
        known = isinstance(error, (ValueError, TypeError, OSError)) or hasattr(error, "exit_code")
        if not known or os.environ.get("ANYTIME_TRACEBACK"):
            raise
        print(f"anytime {name}: error: {_sentence(error)}", file=sys.stderr)
        return code


def _sentence(error: Any) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return str(error)
