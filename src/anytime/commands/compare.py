"""Compare several evaluated runs in one table and one figure, over MACs and over measured ms. Two runs on the same images are
also compared image by image at equal MACs; --group gives mean and 95% interval over seeds. With --out FILE.html all of it is
one page.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytime.analysis.curves import MILESTONES
from anytime.analysis.paired import paired
from anytime.analysis.summary import comparison, grouped_comparison, summary, timing_differences
from anytime.commands.parser import Parser
from anytime.reporting.columns import COMPARISON_COLUMNS, GROUP_COLUMNS, PAIRED_COLUMNS, STEP_COLUMNS
from anytime.reporting.tables import Column, format_table
from anytime.support.files import atomic_write
from anytime.support.owned import MARK, check_own
from anytime.support.text import printable
from anytime.support.units import macs_text
from anytime.trace import Trace

if TYPE_CHECKING:
    from anytime.reporting.report import Section

_CONDITIONS = ("name", "samples", "hardware", "load", "seconds_batch", "torch", "date")


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "compare",
        __doc__,
        "  anytime compare runs/anytimenet_Digits runs/anytimenet_baseline_Digits --out runs/both.html\n"
        "  anytime compare runs/sieve_* runs/constant_* --group",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories with a trace (made by `anytime evaluate RUN`)")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which traces (default: test)")
    parser.add_argument("--group", action="store_true", help="runs of one recipe that differ only in their seed share a row")
    parser.add_argument(
        "--out",
        type=Path,
        help="the figure, or a page with all tables, FILE.html (default: runs/compare.png, always replaced)",
    )
    parser.add_overwrite("the file of --out")
    options = parser.parse_args(arguments)
    for name in options.runs:
        parser.check_model(name)
    if twice := next((name for name in options.runs if options.runs.count(name) > 1), None):
        parser.error(f"each run can be compared once, got {twice} {options.runs.count(twice)} times")
    from anytime.reporting import plots
    from anytime.reporting.evaluation import stored_traces
    from anytime.reporting.report import Section, write_page

    kinds = ["html", *plots.file_kinds()]
    out = options.out or Path("runs/compare.png")
    if (kind := plots.file_kind(out)) not in kinds:
        parser.error(f"--out needs the name of a page or a figure, ending with one of {', '.join(kinds)}; got {str(out)!r}")
    if options.out:
        parser.check_free(out, "--out", options.overwrite)
    else:
        check_own(out)
    traces = stored_traces(options.runs, options.part)
    if differences := timing_differences(traces):
        warnings.warn(differences, stacklevel=2)
    rows, columns = (grouped_comparison(traces), GROUP_COLUMNS) if options.group else (comparison(traces), COMPARISON_COLUMNS)
    print(format_table(rows, columns))
    said, pairs = _paired(*traces.items()) if len(traces) == 2 else ("", [])
    if said:
        print(f"\n{printable(said)}")
    if pairs:
        print(format_table(pairs, PAIRED_COLUMNS))
    figure = plots.compare(traces)
    if not options.out:
        check_own(out)
    if kind == "html":
        title = f"{', '.join(traces)} ({options.part} images)"
        in_short = Section("Side by side", _sentence(differences or ""), rows, columns)
        write_page(out, title, _sections(traces, in_short, said, pairs), options.overwrite)
    else:
        with atomic_write(out, options.overwrite or not options.out) as part:
            figure.savefig(part, format=kind, dpi=150, metadata=MARK if kind == "png" else None)
    print(printable(f"wrote {out}"))
    return 0


def _paired(first: tuple[str, Trace], second: tuple[str, Trace]) -> tuple[str, list[dict[str, Any]]]:
    """What is said of two networks at equal MACs, and a row for each budget, if they answered the same images."""
    (name, one), (other_name, other) = first, second
    whole, least = min(float(t.macs[-1]) for t in (one, other)), max(float(t.macs[0]) for t in (one, other))
    budgets = sorted({budget for share in MILESTONES if (budget := share * whole) >= least})
    try:
        results = [paired(one, other, budget) for budget in budgets]
    except ValueError as error:
        return f"no test image by image: {error}", []
    if not results:
        said = f"the last answer of one network costs {macs_text(whole)}, the first of the other more"
        return f"no test at equal MACs: {said}", []
    rows = [
        {"first": r.accuracies[0], "second": r.accuracies[1], "interval": f"{r.low:+.2%} to {r.high:+.2%}"} | vars(r)
        for r in results
    ]
    return f"at equal MACs, first {name}, second {other_name}:", rows


def _sections(traces: Mapping[str, Trace], in_short: Section, said: str, rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The page: the tables of the terminal, the figure, and the numbers of its points."""
    from anytime.reporting import plots
    from anytime.reporting.report import Section

    panels = [plots.compare(traces, cost) for cost in plots.panel_costs(traces.values())]
    steps = [{"name": name} | step for name, trace in traces.items() for step in summary(trace)["steps"]]
    measured = [{**trace.meta, "name": name, "samples": trace.num_samples} for name, trace in traces.items()]
    return [
        in_short,
        *([Section("Image by image", _sentence(said), rows, PAIRED_COLUMNS)] if said else []),
        Section("Figures", figures={"Accuracy by cost; each answer holds until the next": panels}),
        Section("Every step", rows=steps, columns=(COMPARISON_COLUMNS[0], *STEP_COLUMNS)),
        Section("Measured on", rows=measured, columns=[Column(key, key) for key in _CONDITIONS]),
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
