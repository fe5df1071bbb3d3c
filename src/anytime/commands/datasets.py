"""List the data sets, where they come from, and whether they are on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anytime.commands.parser import Parser
from anytime.reporting.tables import Column, format_table
from anytime.support.text import printable


def run(arguments: Sequence[str]) -> int:
    parser = Parser("datasets", __doc__)
    parser.add_argument("--root", type=Path, help="folder to look in (default: $ANYTIME_DATA or ~/.cache/anytime/data)")
    root = parser.parse_args(arguments).root
    from anytime.data import default_root, describe

    rows = [
        {
            "name": row.name,
            "train": row.train,
            "test": row.test,
            "classes": row.classes,
            "size": "x".join(map(str, row.input_size)),
            "found": "yes" if row.found else "no",
            "source": row.homepage or "any folder with one subfolder per class",
        }
        for row in describe(root)
    ]
    titles = {"size": "C x H x W", "found": "here", "source": "where it comes from"}
    columns = [Column(key, titles.get(key, key), ",d" if key in ("train", "test") else "") for key in rows[0]]
    folder = printable(str(default_root() if root is None else root.expanduser()))
    print(f"{format_table(rows, columns)}\n\nlooked in {folder}; use --root or ANYTIME_DATA for another folder")
    return 0
