"""One self-contained HTML page: tables, figures and the facts behind them; it loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from anytime.analysis.summary import summary
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.tables import Column, is_text, used
from anytime.support.files import atomic_write
from anytime.support.units import macs_text
from anytime.trace import Trace


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, paragraphs of plain text, a table and figures by caption."""

    title: str
    text: str = ""  # a blank line separates paragraphs
    rows: Sequence[Mapping[str, Any]] = ()
    columns: Sequence[Column] = ()  # those without any value are omitted
    figures: Mapping[str, Figure] = field(default_factory=dict)


def write_report(
    path: str | os.PathLike[str],
    title: str,
    trace: Trace,
    figures: Mapping[str, Figure],
    sections: Sequence[Section] = (),
) -> None:
    """Writes the report of a trace with one label level as an HTML file.

    It holds a summary, the table of steps, the figures by caption, further sections, and the facts: hardware, recipe, all of
    `trace.meta`.
    """
    numbers = summary(trace)
    standard = [
        Section("In short", _in_short(numbers)),
        Section("Every step", _HOW_TO_READ, numbers["steps"], STEP_COLUMNS),
        Section("Figures", figures=figures),
    ]
    facts = {"samples": trace.num_samples, "classes": trace.num_classes} | _flat(trace.meta)
    rows = [{"fact": name, "value": str(value)} for name, value in facts.items() if value is not None]
    about = Section("How it was measured", rows=rows, columns=(Column("fact", ""), Column("value", "")))
    write_page(path, title, [*standard, *sections, about])


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Writes sections to one HTML file, atomically; creates missing folders."""
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(title=escape(title), style=_STYLE, body=body)
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")


def _in_short(numbers: Mapping[str, Any]) -> str:
    first, last, over = numbers["steps"][0], numbers["steps"][-1], numbers["overthinking"]
    if len(numbers["steps"]) == 1:
        return f"One answer after {macs_text(last['macs'])} MACs: {last['accuracy']:.2%} accuracy."
    drop, stop = numbers["largest_drop"], numbers["threshold"]
    monotone = "it never drops on the way" if drop == 0 else f"the largest drop on the way is {100 * drop:.2f} points"
    return (
        f"The first answer comes after {first['share_of_macs']:.1%} of the MACs ({macs_text(first['macs'])}) and is "
        f"right for {first['accuracy']:.2%} of the samples; the last, after {macs_text(last['macs'])} MACs, for "
        f"{last['accuracy']:.2%}. Accuracy: {monotone}.\n\n"
        f"Average error over all steps (AE) {numbers['average_error']:.2%}, so timeliness 1 - AE is "
        f"{numbers['timeliness']:.2%}: the expected accuracy if all steps are equally likely to be the last. "
        f"{over['destructive']:.2%} of the samples were right earlier but are wrong at the end.\n\n"
        f"Stopping each sample at a confidence threshold keeps the accuracy of the last step from "
        f"{stop['lossless_share_of_macs']:.1%} of the MACs on average (threshold chosen on these samples)."
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph]
    if section.rows:
        parts.append(_table(section.rows, section.columns))
    parts += [_figure(caption, figure) for caption, figure in section.figures.items()]
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    columns = used(rows, columns)
    kinds = [' class="text"' if is_text(rows, column) else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(column.title)}</th>" for column, kind in zip(columns, kinds, strict=True))
    lines = (
        "".join(f"<td{kind}>{escape(column.text(row))}</td>" for column, kind in zip(columns, kinds, strict=True))
        for row in rows
    )
    thead = f"<thead><tr>{head}</tr></thead>" if any(column.title for column in columns) else ""
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{thead}<tbody>\n{body}\n</tbody></table></div>'


def _figure(caption: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    # An <img>, not inline <svg>: identifiers of several figures would clash on one page.
    with matplotlib.rc_context({"svg.hashsalt": "anytime"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data, text = base64.b64encode(buffer.getvalue()).decode(), escape(caption)
    image = f'<img alt="{text}" width="{96 * figure.get_figwidth():.0f}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _flat(meta: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"recipe": {"epochs": 3}}` as `{"recipe.epochs": 3}`, without the values in the table of steps."""
    flat: dict[str, Any] = {}
    for key, value in meta.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key not in ("seconds_low", "seconds_high"):
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return flat


_HOW_TO_READ = (
    "MACs are multiply-adds per sample (FLOPs / 2), cumulative over the stream; contract MACs are those of the "
    "cheapest way to only that answer. Confidence is the mean max softmax; p(correct class) the mean softmax "
    "probability of the label, which Kim et al. (2020) call confidence; ECE the expected calibration error over 15 "
    "bins; r per class Pearson's correlation of p(correct class) with accuracy over classes. Milliseconds are "
    "cumulative, with their 10th and 90th percentile."
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5d666f; --line: #dfe3e8; --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa4ae; --line: #343b43; --page: #14181c; --card: #1c2127; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; margin: .6rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
th.text, td.text { text-align: left; white-space: normal; }
tbody tr:hover { background: var(--card); }
figure { margin: 1.25rem 0; padding: 1rem; background: #ffffff; border: 1px solid var(--line); border-radius: .5rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .6rem; font-size: .88rem; color: #4a535c; max-width: 46rem; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
