"""Traces: a model's answer to every sample of a data set at every step, and the cost of each step.

A trace is recorded once and stored; every metric, curve and figure is a pure function of traces.
"""

from anytime.trace.recording import record
from anytime.trace.trace import Trace, labelled, require_one_level

__all__ = ["Trace", "labelled", "record", "require_one_level"]
