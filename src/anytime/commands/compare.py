"""Compare several evaluated runs in one table and one figure, over MACs and over measured ms. Two runs on the same images are
also compared image by image at equal MACs; --group gives mean and 95% interval over seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from anytime.analysis.curves import MILESTONES
from anytime.analysis.paired import paired
from anytime.analysis.summary import comparison, grouped_comparison, timing_differences
from anytime.commands.parser import Parser
from anytime.reporting.columns import COMPARISON_COLUMNS, GROUP_COLUMNS, PAIRED_COLUMNS
from anytime.reporting.tables import format_table
from anytime.support.files import atomic_write
from anytime.support.owned import MARK, check_own
from anytime.support.text import printable
from anytime.support.units import macs_text
from anytime.trace import Trace


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "compare",
        __doc__,
        "  anytime compare runs/anytimenet_Digits runs/anytimenet_baseline_Digits --out runs/both.pdf\n"
        "  anytime compare runs/sieve_* runs/constant_* --group",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories with a trace (made by `anytime evaluate RUN`)")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which traces (default: test)")
    parser.add_argument("--group", action="store_true", help="runs of one recipe that differ only in their seed share a row")
    parser.add_argument("--out", type=Path, help="the figure (default: runs/compare.png, which each comparison replaces)")
    parser.add_overwrite("the figure of --out")
    options = parser.parse_args(arguments)
    for name in options.runs:
        parser.check_model(name)
    if twice := next((name for name in options.runs if options.runs.count(name) > 1), None):
        parser.error(f"each run can be compared once, got {twice} {options.runs.count(twice)} times")
    from anytime.reporting import plots
    from anytime.reporting.evaluation import stored_traces

    kinds = plots.file_kinds()
    out = options.out or Path("runs/compare.png")
    if (kind := plots.file_kind(out)) not in kinds:
        parser.error(f"--out needs the name of a figure, ending with one of {', '.join(kinds)}; got {str(out)!r}")
    if options.out:
        parser.check_free(out, "--out", options.overwrite)
    else:
        check_own(out)
    traces = stored_traces(options.runs, options.part)
    if differences := timing_differences(traces):
        warnings.warn(differences, stacklevel=2)
    if options.group:
        print(format_table(grouped_comparison(traces), GROUP_COLUMNS))
    else:
        print(format_table(comparison(traces), COMPARISON_COLUMNS))
    if len(traces) == 2:
        _show_paired(*traces.items())
    figure = plots.compare(traces)
    if not options.out:
        check_own(out)
    with atomic_write(out, options.overwrite or not options.out) as part:
        figure.savefig(part, format=kind, dpi=150, metadata=MARK if kind == "png" else None)
    print(printable(f"wrote {out}"))
    return 0


def _show_paired(first: tuple[str, Trace], second: tuple[str, Trace]) -> None:
    """Prints the difference of two networks at equal MACs, if they answered the same images."""
    (name, one), (other_name, other) = first, second
    whole, least = min(float(t.macs[-1]) for t in (one, other)), max(float(t.macs[0]) for t in (one, other))
    budgets = sorted({budget for share in MILESTONES if (budget := share * whole) >= least})
    try:
        results = [paired(one, other, budget) for budget in budgets]
    except ValueError as error:
        print(f"\nno test image by image: {error}")
        return
    if not results:
        print(f"\nno test at equal MACs: the last answer of one network costs {macs_text(whole)}, the first of the other more")
        return
    rows = [
        {"first": r.accuracies[0], "second": r.accuracies[1], "interval": f"{r.low:+.2%} to {r.high:+.2%}"} | vars(r)
        for r in results
    ]
    print(f"\nat equal MACs, first {name}, second {other_name}:")
    print(format_table(rows, PAIRED_COLUMNS))
