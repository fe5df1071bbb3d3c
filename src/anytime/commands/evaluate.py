"""Record a trained model's answers to the test images at every step (the trace); print metrics, and save them with figures
and report.html in the run directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anytime.commands.parser import Parser
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.tables import format_table
from anytime.support.text import printable


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "evaluate",
        __doc__,
        "  anytime evaluate runs/demo\n  anytime evaluate fast_cifar10 --root ~/data --download",
    )
    parser.add_model("run")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which images (default: test)")
    parser.add_data_folder()
    parser.add_device()
    parser.add_argument("--out", type=Path, help="where to write (default: the run directory, or runs/NAME)")
    parser.add_overwrite("the evaluation that --out holds")
    options = parser.parse_args(arguments)
    parser.check_model(options.run)
    parser.check_device(options.device)
    from anytime.reporting.evaluation import evaluate_run

    result = evaluate_run(
        options.run,
        options.part,
        options.root,
        options.device,
        options.out,
        download=options.download,
        trust=options.trust,
        replace=options.overwrite or not options.out,
    )
    numbers = result.numbers
    coarser = numbers.get("coarser_levels", [])
    for row in [numbers, *coarser]:
        if coarser:
            print(f"label level of {row['classes']} classes")
        print(format_table(row["steps"], STEP_COLUMNS) + "\n" * bool(coarser))
    errors = numbers["error_at_cost"]["macs"]
    print(f"\naverage error AE {numbers['average_error']:.2%}, timeliness {numbers['timeliness']:.2%}")
    print("error at share of MACs: " + ", ".join(f"{k}: {'–' if v is None else f'{v:.2%}'}" for k, v in errors.items()))
    print(printable(f"wrote {result.trace}, {result.metrics}, {result.report}"))
    return 0
