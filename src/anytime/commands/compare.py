"""Compare several evaluated runs in one table and one figure, over MACs and over measured ms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anytime.analysis.summary import comparison
from anytime.commands.parser import Parser
from anytime.reporting.columns import COMPARISON_COLUMNS
from anytime.reporting.tables import format_table
from anytime.support.files import atomic_write


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "compare", __doc__, "  anytime compare runs/anytimenet_Digits runs/anytimenet_baseline_Digits --out runs/both.pdf"
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories with a trace (made by `anytime evaluate RUN`)")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which traces (default: test)")
    parser.add_argument("--out", type=Path, help="the figure (default: runs/compare.png, which each comparison replaces)")
    parser.add_overwrite("the figure of --out")
    options = parser.parse_args(arguments)
    for name in options.runs:
        parser.check_model(name)
    from anytime.reporting import plots
    from anytime.reporting.evaluation import stored_traces

    kinds = plots.file_kinds()
    out = options.out or Path("runs/compare.png")
    if out.suffix.removeprefix(".") not in kinds:
        parser.error(f"--out needs the name of a figure, ending with one of {', '.join(kinds)}; got {str(out)!r}")
    if options.out:
        parser.check_free(out, "--out", options.overwrite)
    traces = stored_traces(options.runs, options.part)
    print(format_table(comparison(traces), COMPARISON_COLUMNS))
    with atomic_write(out) as part:
        plots.compare(traces).savefig(part, format=out.suffix.removeprefix("."), dpi=150)
    print(f"wrote {out}")
    return 0
