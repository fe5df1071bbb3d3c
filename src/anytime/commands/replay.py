"""Decide once more what a predictor recorded (`Predictor(record="flight.jsonl")`, or anytime-edge's): what would another rule,
profile or engine have answered, and what would have been missed?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from anytime.commands.parser import Parser
from anytime.reporting.tables import Column, format_table
from anytime.runtime import Profile
from anytime.runtime.interrupts import STEP
from anytime.runtime.profile import QUANTILES, Latency
from anytime.runtime.replay import Decision, Flight, ReplaySettings, check_work, known_steps, read_flights, replay
from anytime.stopping.saved import rule_from_text
from anytime.support.text import printable
from anytime.support.units import guard_seconds, ms_text, typed_seconds

COLUMNS = (
    Column("what", ""),
    Column("answers", "answers"),
    Column("late", "late"),
    Column("priors", "no step"),
    Column("step", "mean step", ".2f"),
    Column("elapsed", "mean ms", ms_text),
    Column("p99", "p99 ms", ms_text),
)


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "replay",
        __doc__,
        "  anytime replay flight.jsonl --stop confidence=0.8\n  anytime replay flight.jsonl --interrupt step --quantile p999 "
        "--profile runs/mine-onnx/profile.json\n  anytime replay flight.jsonl --engine runs/mine/profile.json",
    )
    parser.add_argument("flight", type=Path, metavar="FLIGHT", help="the file that was recorded; FLIGHT.1 is also read")
    parser.add_argument("--stop", metavar="RULE", help="another rule, such as confidence=0.8; never for none")
    parser.add_argument("--interrupt", choices=("operator", "step"), help="what a deadline ends")
    parser.add_argument("--guard", metavar="TIME", help="time to keep free before a deadline, e.g. 1ms")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="plan with this profile; steps take what they took")
    engine = "as if each step took as much longer or shorter as in this profile, which also plans"
    parser.add_argument("--engine", type=Path, metavar="FILE", help=engine)
    parser.add_argument("--quantile", choices=tuple(QUANTILES), default="p99", help="of that profile (default: p99)")
    options = parser.parse_args(arguments)
    if options.profile and options.engine:
        parser.error("--engine plans with its own profile: give --profile or --engine, not both")
    flights, lost = read_flights(options.flight)
    if not flights:
        later = "the recorder writes 32 at a time, and the rest at its end"
        why = f"{lost:,} lines are damaged, of another version, or belong to no flight" if lost else later
        raise ValueError(f"{options.flight} holds no answers yet; {why}")
    try:
        settings = [_changed(options, flight) for flight in flights]
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    check_work(zip(flights, settings, strict=True))
    rows = []
    for number, (flight, changed) in enumerate(zip(flights, settings, strict=True), 1):
        named = f"flight {number}, " if len(flights) > 1 else ""
        rows.append(_row(f"{named}as recorded", flight.answers))
        rows.append(_row(f"{named}as replayed", made := replay(flight, changed)))
        pairs = list(zip(flight.answers, made, strict=True))
        rows[-1]["differs"] = sum(new is not None and new.step != old.step for old, new in pairs)
    print(format_table(rows, COLUMNS))
    for row in rows:
        if row.get("differs") or row["unknown"]:
            print(printable(f"{row['what']}: {row.get('differs', 0):,} answers of another step, {row['unknown']:,} unknown"))
    if lost:
        print(f"{lost:,} lines are damaged, of another version, or belong to no flight")
    return 0


def _changed(options: Any, flight: Flight) -> ReplaySettings:
    """The settings of a flight with what the options change."""
    facts = dict(flight.facts)
    if options.stop is not None:
        facts["stop"] = None if options.stop == "never" else rule_from_text(options.stop).to_dict()
    settings = ReplaySettings.of(Flight(facts))
    if file := options.profile or options.engine:
        profile = Profile.load(file)
        steps: tuple[Latency, ...] = profile.at(1).steps
        plan = [(step.at(options.quantile), step.p50) for step in steps]
        known = facts["plan"]
        if (count := known_steps(flight) or len(plan)) != len(plan):
            raise ValueError(f"{file} is a profile of {len(plan)} steps, the flight has {count}")
        if options.engine and known is None:
            raise ValueError("the flight was recorded without a profile, so the times of another engine cannot be scaled")
        scale = [new / old if old else 1.0 for (_, new), (_, old) in zip(plan, known, strict=True)] if options.engine else None
        settings = replace(settings, plan=plan, macs=profile.macs, scale=scale)
        if options.engine and profile.interrupt == STEP:  # which cannot cancel a step
            settings = replace(settings, interrupt=STEP)
    if options.interrupt:
        settings = replace(settings, interrupt=options.interrupt)
    if options.guard is not None:
        settings = replace(settings, guard=guard_seconds(typed_seconds(options.guard, "--guard")))
    return settings


def _row(what: str, decisions: Sequence[Decision | None]) -> dict[str, Any]:
    known = [each for each in decisions if each is not None]
    late, times = sum(each.missed for each in known), sorted(each.elapsed for each in known)
    row: dict[str, Any] = {"what": what, "answers": len(known), "unknown": len(decisions) - len(known)}
    if not known:
        return row | {"late": "-", "priors": 0, "step": None, "elapsed": None, "p99": None}
    row |= {"late": f"{late:,} ({late / len(known):.2%})", "priors": sum(each.step < 1 for each in known)}
    steps = mean(max(each.step, 0) for each in known)
    return row | {"step": steps, "elapsed": mean(times), "p99": Latency.of(times).p99}
