"""Decisions on cases that `anytime` recorded (tests/runtime/test_recorded_cases.py): the edge run-time decides the same."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")

from anytime_edge import Network, Predictor, Profile, Session  # noqa: E402
from anytime_edge.manifest import Manifest, Step  # noqa: E402
from anytime_edge.profile import QUANTILES  # noqa: E402

CASES = json.loads((Path(__file__).parent / "cases.json").read_text())


class Scripted(Network):
    """Steps whose seconds and logits are written down; only they advance the clock."""

    def __init__(self, case: dict[str, Any], pool: Any) -> None:
        classes = len(case["logits"][0])
        steps = tuple(Step("", "", (), (), (("answer", (1, classes)),), macs) for macs in case["macs"])
        super().__init__(Manifest("scripted", "float32", (classes,), (3, 2, 2), steps, "", {}, {}), [], 1, pool)
        self.logits, self.now, self.started, self.seconds = case["logits"], 100.0, 0, list[float]()

    def step(self, step: int, values: Any, call: Any = None) -> Any:
        self.started += 1
        self.now += self.seconds[step - 1]
        return np.array([[float(value) for value in self.logits[step - 1]]], np.float32), values

    def call(self) -> Any:
        return SimpleNamespace(terminate=False)


@pytest.fixture(scope="module")
def pool() -> Any:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("number", range(len(CASES)))
def test_recorded_decisions(number: int, pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[number]
    network = Scripted(case, pool)
    profile = Profile([dict(zip(QUANTILES, row, strict=True)) for row in case["profile"]], {})
    monkeypatch.setattr(Profile, "check", lambda *_: None)
    monkeypatch.setattr(Session, "wait", lambda session, seconds: session._run.result() or session.best())
    predictor = Predictor(network, profile, clock=lambda: network.now, **case["predictor"])
    for call in case["calls"]:
        network.started, network.seconds, expected = 0, call["seconds"], call["expect"]
        answer = predictor(np.full((1, 3, 2, 2), 0.5), call["deadline"])
        own = {"step": answer.step, "reason": answer.reason, "elapsed": round(answer.elapsed, 9), "missed": answer.missed}
        own |= {"started": network.started, "label": int(answer.label[0]), "macs": answer.macs}
        assert own == {key: expected[key] for key in own}, call
        assert float(answer.confidence[0]) == pytest.approx(expected["confidence"], abs=1e-5)
