"""The columns of tables that several commands print."""

from __future__ import annotations

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
