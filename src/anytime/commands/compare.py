"""`anytime compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anytime.commands.parser import Parser, check_trained

if TYPE_CHECKING:
    from anytime.trace import Trace


def run(arguments: Sequence[str]) -> int:
    """Compare evaluated runs in one table and one figure, over MACs and over measured ms."""
    parser = Parser(
        "compare",
        "One table and one figure of several evaluated runs, over MACs and over measured ms.",
        "  anytime compare runs/anytimenet_Digits runs/anytimenet_baseline_Digits --out runs/both.pdf",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directories with a trace (`anytime evaluate RUN` makes it)"
    )
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="whose traces (default: test)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare.png"), help="the figure (default: runs/compare.png)")
    options = parser.parse_args(arguments)
    for run in options.runs:
        check_trained(parser, run)
    from anytime.reporting import plots

    kinds = plots.file_kinds()
    if options.out.suffix.removeprefix(".") not in kinds:
        parser.error(f"--out needs the name of a figure, ending with one of {', '.join(kinds)}; got {str(options.out)!r}")
    from anytime.analysis.summary import comparison
    from anytime.reporting.columns import COMPARISON_COLUMNS
    from anytime.reporting.evaluation import stored_traces
    from anytime.reporting.tables import format_table

    traces: dict[str, Trace] = stored_traces(options.runs, options.part)
    print(format_table(comparison(traces), COMPARISON_COLUMNS))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plots.compare(traces).savefig(options.out, dpi=150)
    print(f"wrote {options.out}")
    return 0
