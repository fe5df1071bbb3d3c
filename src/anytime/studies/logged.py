"""What a training logs; the run may come from a stranger, and a training may be writing there now."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from anytime.support.documents import read_limited
from anytime.support.text import one_line
from anytime.training.logs import METRICS

BYTES = 2**26  # of a table


def logged(run: Path, column: str, count: str) -> list[tuple[int, dict[str, float]]]:
    """The rows of a run's metrics that have a value in a column, each with its epoch or step; empty cells are left out.

    Args:
        run: The run directory.
        column: The column.
        count: "epoch" or "step".

    Raises:
        ValueError: The table is damaged, longer than any of a training, or a pipe.
        OSError: There is none.
    """
    path = run / METRICS
    text = read_limited(path, BYTES).decode(errors="replace")
    rows = []
    try:
        for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):  # the last line may be half written
            if row.get(column):
                numbers = {key: float(value) for key, value in row.items() if key and value}
                rows.append((int(numbers[count]), numbers))
    except (csv.Error, ValueError, LookupError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error
    return rows
