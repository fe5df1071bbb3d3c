"""Decisions on recorded cases, the same in `anytime-edge` (edge/tests/test_recorded_cases.py).

`python tests/runtime/test_recorded_cases.py` records them anew.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import AnytimeModel
from anytime.runtime import Predictor, Profile, Session
from anytime.runtime.engines.pytorch import EagerSteps
from anytime.runtime.profile import BatchProfile, Latency, architecture, fingerprint
from anytime.stopping import Rule

CASES = Path(__file__).parents[2] / "edge/tests/cases.json"
KEYS = ("step", "reason", "elapsed", "missed", "started", "label", "confidence", "macs")


class Scripted(AnytimeModel):
    """Steps whose seconds and logits are written down; only they advance the clock."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__(len(logits[0]))
        self.num_steps, self.logits, self.bias = len(logits), logits, torch.nn.Parameter(torch.zeros(1))
        self.now, self.started, self.seconds = 100.0, 0, list[float]()

    def initial_state(self, x: Tensor) -> Any:
        return 0

    def step(self, state: int) -> tuple[Tensor, int]:
        self.started += 1
        self.now += self.seconds[state]
        return torch.tensor([[float(value) for value in self.logits[state]]]), state + 1


class Cancelling(EagerSteps):
    """Steps that end at once on the true clock, so nothing is ever left to cancel."""

    cancels = True

    def call(self) -> threading.Event:
        return threading.Event()

    def step(self, step: int, state: Any, size: int, call: Any = None) -> tuple[Any, Any]:
        return super().step(step, state, size)


def decisions(case: dict[str, Any], patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a predictor decides in each call of a case."""
    model = Scripted(case["logits"]).eval()
    patch.setattr(Predictor, "_make_run", lambda self: Cancelling(self.model))
    never = SimpleNamespace(set=lambda *_: None, holds=lambda _: True, take_back=lambda _: None)
    patch.setattr("anytime.runtime.interrupts.ALARMS", never)  # which keep the true time
    patch.setattr(Session, "wait", lambda session, seconds: session._done.wait() and session.best())  # time is the steps'
    rows = tuple(Latency(100, *row) for row in case["profile"])
    batch = BatchProfile(rows, rows, rows)
    macs = tuple(case["macs"])
    profile = Profile(architecture(model), (3, 2, 2), fingerprint(model), {1: batch}, macs, macs)
    given = dict(case["predictor"])
    stop, combine = given.pop("stop"), given.pop("combine")
    rule = None if stop is None else Rule.from_dict(stop)
    predictor = Predictor(model, profile, Combiner.from_dict(combine), rule, clock=lambda: model.now, **given)
    counterpart: Any = predictor._run.model  # which has attributes of its own
    predictor.clock = predictor._plan._clock = lambda: counterpart.now
    made = []
    for call in case["calls"]:
        counterpart.started, counterpart.seconds = 0, call["seconds"]
        answer = predictor(torch.full((1, 3, 2, 2), 0.5), call["deadline"])
        values = {"step": answer.step, "reason": answer.reason, "elapsed": round(answer.elapsed, 9), "missed": answer.missed}
        values |= {"started": counterpart.started, "label": int(answer.label), "macs": int(answer.macs)}
        made.append(values | {"confidence": round(float(answer.confidence), 5)})
    return made


@pytest.mark.parametrize("number", range(len(json.loads(CASES.read_text())) if CASES.exists() else 0))
def test_recorded_decisions(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.loads(CASES.read_text())[number]
    for call, own in zip(case["calls"], decisions(case, monkeypatch), strict=True):
        expected = call["expect"]
        assert {key: own[key] for key in KEYS[:-2]} == {key: expected[key] for key in KEYS[:-2]}, call
        assert own["confidence"] == pytest.approx(expected["confidence"], abs=1e-5)
        assert own["macs"] == expected["macs"]


def test_every_rule_combiner_and_reason_is_among_the_cases() -> None:
    text = CASES.read_text()
    missing = [kind for kind in (*Rule.kinds, *Combiner.kinds) if f'"{kind}"' not in text]
    assert missing == []
    reasons = {call["expect"]["reason"].split(";")[0] for case in json.loads(text) for call in case["calls"]}
    assert reasons == {"complete", "deadline", "stopped"}


def record() -> None:
    """Writes the cases: every rule and combiner, both ways to interrupt, deadlines of all kinds, a machine that slows down."""
    import random

    rng = random.Random(0)

    def weights(*shape: int) -> Any:
        return round(rng.gauss(0, 1), 3) if not shape else [weights(*shape[1:]) for _ in range(shape[0])]

    steps, classes, units = 5, 4, 3
    gru = [(3 * units, 5), (3 * units, units), (3 * units,), (3 * units,), (1, units), (1,)]
    bands: list[list[Any]] = [[[0.7, "inf"]], [], [[0.2, 0.5], [0.8, 0.9]], [[0.6, "inf"]], []]
    rules: list[Any] = [
        None,
        {"kind": "never"},
        {"kind": "confidence", "threshold": 0.7},
        {"kind": "confidence", "threshold": [0.9, 0.8, 0.7, 0.6, "inf"]},
        {"kind": "margin", "threshold": 0.4},
        {"kind": "entropy", "threshold": 0.8},
        {"kind": "patience", "times": 2},
        {"kind": "selection_latency", "threshold": 0.5, "hold": 2},
        {"kind": "mac_budget", "macs": 35},
        {"kind": "deadline", "seconds": 0.035},
        {"kind": "confidence_bands", "bands": bands},
        {"kind": "any", "rules": [{"kind": "patience", "times": 3}, {"kind": "mac_budget", "macs": 45}]},
        {"kind": "all", "rules": [{"kind": "patience", "times": 2}, {"kind": "confidence", "threshold": 0.5}]},
        {"kind": "recurrent", "steps": steps, "weights": [weights(*shape) for shape in gru]},
        {"kind": "final_answer", "steps": steps, "weights": [weights(*(3 * units, classes)), *(weights(*s) for s in gru[1:])],
         "threshold": 0.5},
    ]  # fmt: skip
    combiners: list[Any] = [
        {"kind": "last"},
        {"kind": "caching"},
        {"kind": "product", "weights": None},
        {"kind": "product", "weights": [0.1, 0.5, 1.0, 1.0, 2.0]},
        {"kind": "mixture", "weights": [10, 20, 30, 40, 50]},
        {"kind": "temperature", "temperatures": [0.5, 1.0, 1.5, 2.0, 1.0], "combiner": {"kind": "caching"}},
        {
            "kind": "geometric",
            "weights": [[abs(weights()) for _ in range(t)] for t in range(1, steps + 1)],
            "biases": [[0.5 + abs(weights()) for _ in range(classes)] for _ in range(steps)],
        },
    ]
    cases = []
    pairs = [(rule, rng.choice(combiners)) for rule in rules for _ in range(3)] + [(None, each) for each in combiners * 2]
    for stop, combine in pairs:
        logits: list[list[Any]] = [[round(rng.gauss(0, 1 + t / 2), 2) for _ in range(classes)] for t in range(steps)]
        if rng.random() < 0.25:
            logits[rng.randrange(steps)][rng.randrange(classes)] = rng.choice(["nan", "inf", "-inf"])
        medians = [round(rng.uniform(0.005, 0.015), 4) for _ in range(steps)]
        profile = [[m, m * 1.125, m * 1.5, m * 2, m * 4] for m in medians]
        settings: dict[str, Any] = {"interrupt": rng.choice(["operator", "step"]), "guard": rng.choice([0.0, 0.001])}
        settings["quantile"] = rng.choice(["p50", "p90", "p99", "max"])
        calls, slow, close = [], rng.choice([1.0, 1.0, 2.0]), len(cases) >= len(pairs) - 6
        if close:  # the reserve decides whether a step is risked; it grows, as steps here are never cancelled
            settings |= {"interrupt": "operator", "guard": 0.0}
        for _ in range(12 if close else 6):
            seconds = [round(m * rng.uniform(0.95, 1.05) * slow, 6) for m in medians]
            deadline = rng.choice([None, 0, -1.0, *(round(rng.uniform(0.002, 0.1), 4) for _ in range(6))])
            if close:
                done = rng.randrange(1, steps)
                least = 0.9 * medians[done] + rng.choice([0.0003, 0.0006, 0.0012, 0.0024])
                deadline = round(sum(seconds[:done]) + least, 6)
            calls.append({"seconds": seconds, "deadline": deadline})
        known = {"logits": logits, "profile": profile, "macs": [10 * t for t in range(1, steps + 1)]}
        case = {**known, "predictor": {**settings, "stop": stop, "combine": combine}, "calls": calls}
        with pytest.MonkeyPatch.context() as patch:
            for call, expected in zip(calls, decisions(case, patch), strict=True):
                call["expect"] = expected
        cases.append(case)
    CASES.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    record()
