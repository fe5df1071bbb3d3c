"""Rows of plain values as aligned text or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from anytime.support.text import printable


class Column(NamedTuple):
    """A column of a table: the key of its values in a row, its title, and a format such as `".1%"` or a function."""

    key: str
    title: str
    format: str | Callable[[Any], str] = ""

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell of `row`; a dash if it has no value."""
        value = row.get(self.key)
        if value is None or value != value:
            return "–"
        return self.format(value) if callable(self.format) else format(value, self.format)


def used(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[Column]:
    """The columns that have a value in any row."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def is_text(rows: Sequence[Mapping[str, Any]], column: Column) -> bool:
    """Whether a column holds words (left-aligned) rather than numbers (right-aligned)."""
    return any(isinstance(row.get(column.key), str) for row in rows)


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Aligned plain text: titles, a line of dashes, one line per row; columns without any value are omitted.

    Example:
        >>> from anytime.reporting.tables import Column, format_table
        >>> columns = [Column("step", "step"), Column("right", "right", ".0%")]
        >>> print(format_table([{"step": 1, "right": 0.5}, {"step": 10}], columns))
        step  right
        ----  -----
           1    50%
          10      –
    """
    columns = used(rows, columns)
    cells = _cells(rows, columns)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    left = [is_text(rows, column) for column in columns]
    lines = (
        "  ".join(c.ljust(w) if words else c.rjust(w) for c, w, words in zip(line, widths, left, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A Markdown table; columns without any value are omitted."""
    columns = used(rows, columns)
    titles, *cells = _cells(rows, columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(columns), *cells))


def _cells(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[list[str]]:
    """The titles, then the cells of each row."""
    return [[column.title for column in columns], *([printable(column.text(row)) for column in columns] for row in rows)]
