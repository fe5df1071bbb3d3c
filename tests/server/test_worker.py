"""The thread that computes: no answer is mixed, places are freed, errors end in a reason."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import anytime
from anytime.combine import Product
from anytime.server.costs import batch_sizes, measure
from anytime.server.scheduler import Limits
from anytime.server.states import Seat, gather
from anytime.server.worker import FAILED, Served, Worker, check_combiner
from anytime.stopping.rules import Confidence


class Box:
    """What a request is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Served | None, str]] = []
        self.done = threading.Event()

    def __call__(self, answer: Served | None, reason: str) -> None:
        self.told.append((answer, reason))
        if reason:
            self.done.set()


def image(value: float) -> torch.Tensor:
    return torch.full((1, 3, 4, 4), value)


def submit(worker: Worker, value: float, seconds: float) -> tuple[int, Box]:
    now, box = worker.clock(), Box()
    (key,) = worker.submit(image(value), now, now + seconds, [box])
    return key, box


def test_no_answer_is_mixed(worker: Worker) -> None:
    worker.start()
    source = random.Random(0)
    values = [source.randrange(10) for _ in range(200)]
    boxes = []
    for place, value in enumerate(values):
        boxes.append(submit(worker, value / 10 + 0.05, source.choice([0.3, 1.0, 5.0]))[1])
        if place % 20 == 0:
            time.sleep(0.001)
    assert all(box.done.wait(10) for box in boxes)
    worker.close(1)
    for value, box in zip(values, boxes, strict=True):
        answers = [answer for answer, _ in box.told]
        assert all(answer is not None and int(answer.probabilities.argmax()) == value for answer in answers)
        steps = [answer.step for answer in answers if answer]
        assert steps == sorted(steps)
        assert steps[-1] == 3
        assert answers[-1] is not None
        assert answers[-1].macs <= 300
        assert [reason for _, reason in box.told][-1] == "complete"
        assert not any(reason for _, reason in box.told[:-1])
    assert worker.live == 0
    assert max(len(batch.keys) for batch, _ in worker.take_batches()) > 1
    assert len(worker.take_waits()) == 200
    assert not worker.take_waits()


def test_a_deadline_hands_out_the_best_answer_so_far(worker: Worker, naming: Any) -> None:
    naming.gate.clear()
    worker.start()
    key, box = submit(worker, 0.35, 60.0)
    worker.release(key)
    worker.release(key)
    assert box.told == [(None, "deadline")]
    naming.gate.set()
    worker.close(5)


def test_a_slow_spell_is_forgotten_although_it_rules_out_each_first_step(worker: Worker) -> None:
    worker.drift.ratio = 20_000.0  # 1.1 times that, times 0.1 ms, is more than a second
    worker.start()
    boxes = [submit(worker, 0.5, 1.0)[1]]
    while boxes[-1].done.wait(5) and boxes[-1].told[-1][1] == "deadline":
        boxes.append(submit(worker, 0.5, 1.0)[1])
    assert boxes[-1].told[-1][1] == "complete"
    assert 30 < len(boxes) < 60  # the ratio falls by 2 % each time, to less than half
    worker.close(5)


def test_a_failing_network_ends_its_requests_and_no_others(worker: Worker, naming: Any) -> None:
    worker.start()
    naming.errors.append("out of beans")
    _, box = submit(worker, 0.5, 5.0)
    assert box.done.wait(5)
    assert box.told == [(None, f"{FAILED}: RuntimeError: out of beans")]
    naming.errors.clear()
    _, box = submit(worker, 0.5, 5.0)
    assert box.done.wait(5)
    assert box.told[-1][1] == "complete"
    worker.close(5)
    assert not worker.ready


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_with_the_lock_holds_up_nobody(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error between the taking of the lock and the block that frees it left the lock taken: the whole server hung."""

    def die(*_: Any) -> None:
        worker._changed.acquire()
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("anytime.server.worker.decide", die)
        worker.start()
        _, box = submit(worker, 0.5, 5.0)
        assert worker._thread is not None
        worker._thread.join(5)
    assert worker._changed.acquire(timeout=5)
    worker._changed.release()
    assert not worker.ready
    worker.start()
    assert box.done.wait(5)
    assert box.told[-1][1] == "complete"
    worker.close(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_in_a_batch_ends_its_requests(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their states may be half noted, so that the next batch would have mixed steps."""

    def die(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(worker, "_judge", die)
        worker.start()
        _, box = submit(worker, 0.5, 5.0)
        assert box.done.wait(5)
        assert worker._thread is not None
        worker._thread.join(5)  # what it reports belongs to this test
    assert box.told[-1][1] == f"{FAILED}: the thread that computes has died"
    assert worker.live == 0


def test_a_rule_ends_an_image_early(naming: Any, worker: Worker) -> None:
    ruled = Worker(naming, worker.costs, ([100, 200, 300], [100, 150, 180]), Limits(8, 1e-3), "edf", Confidence(0.39))
    ruled.start()
    _, box = submit(ruled, 0.5, 5.0)
    assert box.done.wait(5)
    answer, reason = box.told[-1]
    assert answer is not None
    assert (answer.step, reason, answer.macs) == (2, "stopped", 200)
    ruled.close(5)
    with pytest.raises(ValueError, match="answers with the last step"):
        check_combiner(Product())


def test_answers_that_are_not_finite_keep_the_one_before(naming: Any, worker: Worker) -> None:
    step = naming.step

    def damaged(state: Any) -> Any:
        logits, after = step(state)
        return (logits * torch.nan if after[0] == 2 else logits), after

    naming.step = damaged
    edf = Worker(naming, worker.costs, ([100, 200, 300], [100, 150, 180]), Limits(8, 1e-3), "edf")
    edf.start()
    _, box = submit(edf, 0.5, 5.0)
    assert box.done.wait(5)
    edf.close(5)
    assert [answer.step for answer, _ in box.told if answer] == [1, 3, 3]


@pytest.mark.parametrize("name", ["anytimenet", "eann", "cascaded_resnet18"])
def test_states_of_several_batches_come_together(name: str, small: Callable[[str], anytime.AnytimeModel]) -> None:
    model = small(name)
    x = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        expected = model(x)[1]
        _, jumped = model.jump(x[:3], 1)
        _, stepped = model.step(model.initial_state(x[3:]))
        places = [Seat(jumped, 2), Seat(stepped, 0), Seat(stepped, 1), Seat(jumped, 0)]
        logits, after = model.step(gather(places))
        torch.testing.assert_close(logits, expected[[2, 3, 4, 0]], rtol=1e-4, atol=1e-4)
        assert gather([Seat(after, place) for place in range(4)]) is after
        with pytest.raises(ValueError, match="different steps"):
            gather([Seat(jumped, 0), Seat(after, 0)])


@pytest.fixture
def small() -> Callable[[str], anytime.AnytimeModel]:
    arguments: dict[str, Any] = {
        "anytimenet": {"width": 4},
        "eann": {"members": tuple({"model": "ann", "arguments": {"units": n, "width": 2, "period": n}} for n in (1, 2))},
        "cascaded_resnet18": {"width": 4},
    }
    return lambda name: anytime.create_model(name, **arguments[name]).eval()


def test_costs_are_medians_by_batch_size(naming: Any) -> None:
    assert batch_sizes(6) == [1, 2, 4, 6]
    assert batch_sizes(1) == [1]
    ticks = iter(range(10_000))
    costs = measure(naming, (3, 4, 4), 2, repeats=2, clock=lambda: float(next(ticks)))
    assert costs.jumps == costs.steps == {1: [1.0] * 3, 2: [1.0] * 3}
