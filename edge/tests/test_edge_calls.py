"""What happens to a call besides its answer: forks, Ctrl-C, and the flight that it leaves behind."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import anytime_edge  # noqa: E402
from anytime_edge import Predictor, decisions, load  # noqa: E402
from anytime_edge import predictor as module  # noqa: E402
from anytime_edge.predictor import Now  # noqa: E402
from written_by_hand import frame  # noqa: E402


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told(network: anytime_edge.Network) -> None:
    predictor = Predictor(network)
    child = os.fork()
    if child == 0:
        try:
            predictor(frame(8, 8, 3))
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_can_load_the_network_anew(folder: Path, threads: int) -> None:
    predictor = Predictor(load(folder, threads))
    label = predictor(frame(8, 8, 3)).label
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # threads of the parent, for which it would wait for ever, are not here
        predictor = Predictor(load(folder, threads))  # in place of the parent's
        gc.collect()
        answer = predictor(frame(8, 8, 3), deadline=60)
        os._exit(0 if answer.step == 2 and answer.label == label else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_session_that_is_open_at_a_fork_has_ended_in_the_child(
    network: anytime_edge.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go, compute = threading.Event(), threading.Event(), network.step

    def step(*given: Any) -> Any:
        began.set()
        assert go.wait(60)
        return compute(*given)

    with monkeypatch.context() as patch:
        patch.setattr(network, "step", step)
        session = Predictor(network).session(frame(8, 8, 3))
        assert began.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # which ends it if it hangs
            try:
                session.wait()
            except RuntimeError as error:
                session.close()
                os._exit(0 if session.done and session.best().step == -1 and "forked" in str(error) else 1)
            os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        go.set()
        session.close()
    assert code == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_session_that_was_complete_before_a_fork_can_be_left_in_the_child(network: anytime_edge.Network) -> None:
    with Predictor(network).session(frame(8, 8, 3)) as session:
        session.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            with session:
                pass
            os._exit(0 if session.wait().step == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_session_that_was_complete_but_not_noted_as_ended_at_a_fork_can_be_left(network: anytime_edge.Network) -> None:
    with Predictor(network).session(frame(8, 8, 3)) as session:
        session.wait()
        session._run = Future()  # whose thread notes the end only after the last answer is known
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            with session:
                pass
            os._exit(0 if session.done and session.wait(5).step == 2 else 1)
        session._run.set_result(None)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_call_waits_for_the_moment_at_which_the_newest_step_is_cancelled(
    network: anytime_edge.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1 may end while the call waits for its end, and step 2, which fits, has until the deadline."""
    waits, clock = list[float](), [100.0]

    class Scripted(anytime_edge.Session):
        def wait(self, seconds: Any = None) -> Any:
            waits.append(seconds)
            clock[0] += seconds
            first, second = self.now.answer, replace(self.now.answer, step=1)
            self.now = Now(first, 0, 0.5, False) if len(waits) == 1 else Now(second, 1, 0.0, False)

    monkeypatch.setattr(module, "Session", Scripted)
    monkeypatch.setattr(Scripted, "_compute", lambda *_: None)
    predictor = Predictor(network, guard=0.5, clock=lambda: clock[0])
    predictor.reserve = 2.0
    answer = predictor(frame(8, 8, 3), 4.0)
    assert waits == [2.0, 1.5, 0.5]
    assert (answer.step, answer.elapsed) == (1, 4.0)


def test_an_error_of_a_step_that_was_cancelled_is_no_cancellation(
    network: anytime_edge.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def run(self, names: Any, given: Any, call: Any) -> Any:
            call.terminate = True
            raise MemoryError("no memory left")

    monkeypatch.setattr(network, "_graphs", [Failing(), Failing()])
    with pytest.raises(MemoryError, match="no memory left"), Predictor(network).session(frame(8, 8, 3)):
        pass


def test_a_saved_combiner_does_not_hide_one_of_the_library(
    network: anytime_edge.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = network.manifest
    saved = {"mixture": {"stop": {"kind": "never"}, "combine": {"kind": "caching"}}}
    monkeypatch.setattr(network, "manifest", known._replace(metadata={**known.metadata, "fitted": saved}))
    (combiner,) = Predictor(network, combine="mixture").combiners
    assert combiner.func is decisions._mixture
    assert combiner.args == ([step.macs for step in known.steps],)


def test_small_probabilities_count_where_tiny_numbers_are_zero(network: anytime_edge.Network) -> None:
    """exp(-92) is such a number in the threads that compute, and log p is -92 nevertheless, as for `anytime`."""
    values = {"kind": "geometric", "weights": [[1.0], [1.0, 1.0]], "biases": [[1.0, 1.0], [1.0, 1.0]]}

    def combined() -> Any:
        combine = decisions.combiner(values, 2, 2)
        _, state = combine(None, np.array([[0.0, -92.0]], np.float32), 1)
        return combine(state, np.array([[-97.0, 0.0]], np.float32), 2)[0][0, 0]

    assert network.pool.submit(combined).result() == pytest.approx(1 / (1 + math.exp(5)), rel=1e-5)


def test_the_reserve_of_a_call_is_the_one_at_its_start(network: anytime_edge.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other calls may change it meanwhile: then this one would wait for one time, and record another."""
    predictor, compute = Predictor(network), network.step
    predictor.reserve = 0.5

    def step(*given: Any) -> Any:
        predictor.reserve = 1.0
        return compute(*given)

    monkeypatch.setattr(network, "step", step)
    with anytime_edge.Session(predictor, network.prepare(frame(8, 8, 3)), predictor.clock(), 60.0, None) as session:
        session.wait()
        assert session.now.kept == 0.5


def test_what_a_step_raised_is_raised_when_a_session_is_left(
    network: anytime_edge.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("step 1 failed")

    monkeypatch.setattr(network, "step", fails)
    with pytest.raises(RuntimeError, match="step 1 failed"), Predictor(network).session(frame(8, 8, 3)):
        pass
    with pytest.raises(KeyError, match="mine"), Predictor(network).session(frame(8, 8, 3)):
        raise KeyError("mine")
    with Predictor(network).session(frame(8, 8, 3)) as session:
        with pytest.raises(RuntimeError, match="step 1 failed"):
            session.wait()
        assert session.wait("1s").step == -1  # once is enough


@pytest.mark.parametrize("interrupt", ["operator", "step"])
def test_a_call_that_is_interrupted_computes_no_further(
    network: anytime_edge.Network, interrupt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, began, go = list[anytime_edge.Session](), threading.Event(), threading.Event()
    steps, compute = list[int](), network.step

    def step(number: int, *given: Any) -> Any:
        steps.append(number)
        began.set()
        assert go.wait(60)
        return compute(number, *given)

    def wait(session: anytime_edge.Session, seconds: Any = None) -> None:
        sessions.append(session)
        assert began.wait(60)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(network, "step", step)
        patch.setattr(anytime_edge.Session, "wait", wait)
        with pytest.raises(KeyboardInterrupt):
            Predictor(network, interrupt=interrupt)(frame(8, 8, 3))
        go.set()
        sessions[0]._run.exception(60)
    assert steps == [1]
    assert sessions[0].best().reason == "interrupted"


@pytest.mark.parametrize(
    "stop",
    [
        *(None, "confidence=inf", {"kind": "confidence", "threshold": math.inf}),
        {"kind": "confidence_bands", "bands": [[[0.9, math.inf]], []]},
    ],
)
def test_a_flight_is_json_even_if_no_step_was_decided_on_in_time(folder: Path, tmp_path: Path, stop: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    predictor = Predictor(folder, stop=stop, record=tmp_path / "flight.jsonl")
    for deadline in (1e-6, 1e-5, 1e-4) * 10:
        predictor(frame(8, 8, 3), deadline)
    predictor.recorder.close()
    head, *lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "flight.jsonl").read_text().splitlines()]
    assert (head["format"], len(lines)) == (2, 30)
    assert all(line["kept"] is None or line["kept"] >= 0 for line in lines)


def test_a_flight_is_one_that_anytime_replays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anytime_edge import recorder

    monkeypatch.setattr(recorder, "MOST_BYTES", 3_000)
    predictor = Predictor(folder, stop="confidence=0.999", record=tmp_path / "flight.jsonl")
    answers = [predictor(frame(8, 8, 3), deadline) for deadline in (None, 0, "10s")] * 10
    for answer in answers:
        predictor.recorder.note(answer, [(1e-3 * t, answer.levels[0]) for t in range(1, answer.step + 1)])
    predictor.recorder.flush()
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 12_000
    lines = [json.loads(line) for line in (tmp_path / "flight.jsonl").read_text().splitlines()]
    assert lines[0]["run_time"] == "anytime_edge"
    assert [lines[-1][key] for key in ("step", "reason", "missed")] == [answers[-1].step, answers[-1].reason, False]
    two = np.sort(answers[-1].probabilities[0])[:-3:-1]
    assert lines[-1]["seen"][-1][:2] == pytest.approx(two.tolist(), abs=1e-6)
    replayed = pytest.importorskip("anytime.runtime.replay")
    (flight,), lost = replayed.read_flights(tmp_path / "flight.jsonl")
    assert lost == 0
    decided = replayed.replay(flight, replayed.ReplaySettings.of(flight))
    assert [each.step for each in decided] == [answer.step for answer in flight.answers]
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no flight of this library"):
        Predictor(folder, record=tmp_path / "mine.txt")
