"""`anytime evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytime.commands.parser import RUN_HELP, Parser, check_device, check_trained

if TYPE_CHECKING:
    pass


def run(arguments: Sequence[str]) -> int:
    """Record what a trained model says on a data set; print and save metrics, figures and a report."""
    parser = Parser(
        "evaluate",
        "Record what a trained model says at every step about the test images (the trace); print and save metrics, figures\n"
        "and report.html in the run directory.",
        "  anytime evaluate runs/demo\n  anytime evaluate anytimenet_cifar10 --root ~/data --download",
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which images (default: test)")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the recipe's")
    parser.add_argument("--download", action="store_true", help="download the data if they are missing")
    parser.add_argument("--device", default="cpu", help="where to run, e.g. cuda (default: cpu)")
    parser.add_argument("--out", type=Path, help="where to write (default: the run directory, or runs/NAME)")
    options = parser.parse_args(arguments)
    check_trained(parser, options.run)
    check_device(parser, options.device)
    from anytime.reporting.columns import STEP_COLUMNS
    from anytime.reporting.evaluation import evaluate_run
    from anytime.reporting.tables import format_table

    result = evaluate_run(options.run, options.part, options.root, options.device, options.out, download=options.download)
    numbers = result.numbers
    print(format_table(numbers["steps"], STEP_COLUMNS))
    errors = numbers["error_at_cost"]["macs"]
    print(f"\naverage error AE {numbers['average_error']:.2%}, timeliness {numbers['timeliness']:.2%}")
    print("error at share of MACs: " + ", ".join(f"{k}: {'–' if v is None else f'{v:.2%}'}" for k, v in errors.items()))
    print(f"wrote {result.trace}, {result.metrics}, {result.report}")
    return 0
