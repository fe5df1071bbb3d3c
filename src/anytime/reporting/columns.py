"""The columns of tables that several commands print."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from anytime.analysis import curves
from anytime.reporting.tables import Column
from anytime.support.units import macs_text, ms_text

STEP_COLUMNS = (
    Column("step", "step"),
    Column("macs", "MACs", macs_text),
    Column("share_of_macs", "% of full", ".1%"),
    Column("contract_macs", "contract MACs", macs_text),
    Column("accuracy", "accuracy", ".2%"),
    Column("worst_class_accuracy", "worst class", ".2%"),
    Column("worst_class", "which"),
    Column("confidence", "confidence", ".3f"),
    Column("true_class_probability", "p(correct class)", ".3f"),
    Column("ece", "ECE", ".3f"),
    Column("pearson", "r per class", ".2f"),
    Column("seconds", "median ms", ms_text),
    Column("seconds_low", "p10 ms", ms_text),
    Column("seconds_high", "p90 ms", ms_text),
)
COMPARISON_COLUMNS = (
    Column("name", "name"),
    Column("dataset", "data set"),
    Column("parameters", "parameters", ",d"),
    Column("steps", "steps"),
    Column("macs", "full MACs", macs_text),
    Column("accuracy", "accuracy", ".2%"),
    Column("average_error", "AE", ".2%"),
    Column("timeliness", "timeliness", ".2%"),
    *(Column(f"error_at_{m:g}", f"error at {Fraction(m)}", ".2%") for m in curves.MILESTONES),
    Column("seconds", "full ms", ms_text),
)


def _with_interval(format_value: Callable[[float], str]) -> Callable[[tuple[float, float]], str]:
    """Writes `(mean, half width)` as `91.20% ± 0.31%`; a single seed has no interval."""

    def text(value: tuple[float, float]) -> str:
        mean, half = value
        return format_value(mean) if math.isnan(half) else f"{format_value(mean)} ± {format_value(half)}"

    return text


GROUP_COLUMNS = (
    *(column for column in COMPARISON_COLUMNS if column.key in ("name", "dataset", "parameters", "steps", "macs")),
    Column("seeds", "seeds"),
    *(
        column._replace(format=_with_interval(column.format if callable(column.format) else "{:.2%}".format))
        for column in COMPARISON_COLUMNS
        if column.key not in ("name", "dataset", "parameters", "steps", "macs")
    ),
)
PAIRED_COLUMNS = (
    Column("budget", "budget (MACs)", macs_text),
    Column("first", "first", ".2%"),
    Column("second", "second", ".2%"),
    Column("difference", "difference", "+.2%"),
    Column("interval", "95% interval"),
    Column("p_value", "p (McNemar)", ".2g"),
)
