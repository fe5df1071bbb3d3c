"""One self-contained HTML page: tables, figures and the facts behind them; it loads nothing from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import count
from typing import Any

from matplotlib.figure import Figure

from anytime.analysis.summary import summary
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.drawing import inline_svg
from anytime.reporting.style import allowed, read
from anytime.reporting.tables import Column, is_text, used
from anytime.support.files import atomic_write
from anytime.support.text import printable
from anytime.support.units import macs_text
from anytime.trace import Trace


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, paragraphs of plain text, a table and figures by caption."""

    title: str
    text: str = ""  # a blank line separates paragraphs
    rows: Sequence[Mapping[str, Any]] = ()
    columns: Sequence[Column] = ()  # those without any value are omitted
    figures: Mapping[str, Figure | Sequence[Figure]] = field(default_factory=dict)  # several panels stand side by side


def write_report(
    path: str | os.PathLike[str],
    title: str,
    trace: Trace,
    figures: Mapping[str, Figure | Sequence[Figure]],
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


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section], replace: bool = True) -> None:
    """Writes sections to one HTML file, atomically; creates missing folders. `replace` as of `support.files.atomic_write`."""
    style, script, numbers = read("colours.css", "base.css", "report.css"), read("report.js"), count()
    body = "\n".join(_section(section, numbers) for section in sections)
    policy = (
        f"default-src 'none'; script-src {allowed(script)}; style-src {allowed(style)}; img-src data:; "
        f"base-uri 'none'; form-action 'none'"
    )
    page = _PAGE.format(title=_escaped(title), policy=policy, style=style, body=body, script=script)
    with atomic_write(path, replace) as part:
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


def _section(section: Section, numbers: Iterator[int]) -> str:
    title = _escaped(section.title)
    parts = [f"<h2>{title}</h2>"]
    parts += [f"<p>{_escaped(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph]
    if section.rows:
        parts.append(f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{_table(section)}</div>')
    parts += [_figure(caption, figures, numbers) for caption, figures in section.figures.items()]
    return '<section class="box">\n' + "\n".join(parts) + "\n</section>"


def _table(section: Section) -> str:
    rows, columns = section.rows, used(section.rows, section.columns)
    kinds = [' class="text"' if is_text(rows, column) else "" for column in columns]
    titles = "".join(f'<th scope="col"{kind}>{_escaped(c.title)}</th>' for c, kind in zip(columns, kinds, strict=True))
    lines = (
        "".join(f"<td{kind}>{_escaped(column.text(row))}</td>" for column, kind in zip(columns, kinds, strict=True))
        for row in rows
    )
    head = f"<thead><tr>{titles}</tr></thead>" if any(column.title for column in columns) else ""
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{head}<tbody>\n{body}\n</tbody></table>"


def _figure(caption: str, figures: Figure | Sequence[Figure], numbers: Iterator[int]) -> str:
    if isinstance(figures, Figure):
        drawn = inline_svg(figures, caption, next(numbers))
    else:
        labels = [f"{caption}: {panel.axes[0].get_xlabel()}" for panel in figures]
        drawn = "\n".join(inline_svg(panel, label, next(numbers)) for panel, label in zip(figures, labels, strict=True))
    return f'<figure><div class="panels">{drawn}</div><figcaption>{_escaped(caption)}</figcaption></figure>'


def _escaped(text: str) -> str:
    return escape(printable(text))


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

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""
