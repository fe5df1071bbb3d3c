"""Images and priors are copied on entry, in the memory layout of the warm-up."""

import threading
from collections.abc import Callable

import pytest
import torch

from anytime import Answer, Predictor, create_model
from anytime.runtime import frames
from anytime.runtime.door import admit

X = torch.full((1, 3, 2, 2), 0.5)


def after_the_first_step(predictor: Predictor, buffer: torch.Tensor, **arguments) -> list[Answer]:
    stream = predictor.stream(buffer, **arguments)
    buffer.fill_(0.9)  # before the first step
    return list(stream)


def in_session(predictor: Predictor, buffer: torch.Tensor) -> Answer:
    model = predictor.model
    inner = model.initial_state
    model.initial_state = lambda x: (buffer.fill_(0.9), inner(x))[1]  # the camera's next frame, before the first step
    with predictor.session(buffer) as session:
        return session.wait(60)


def in_a_call(predictor: Predictor, buffer: torch.Tensor, **arguments) -> Answer:
    inner = predictor.model.initial_state
    predictor.model.initial_state = lambda x: (buffer.fill_(0.9), inner(x))[1]
    return predictor(buffer, **arguments)


@pytest.mark.parametrize(
    "ask",
    [
        lambda predictor, buffer: after_the_first_step(predictor, buffer)[-1],
        in_session,
        in_a_call,
        lambda predictor, buffer: in_a_call(predictor, buffer, contract=True),
    ],
    ids=["stream", "session", "call", "contract"],
)
def test_a_buffer_that_is_reused_changes_no_answer(timed_case: Callable, ask: Callable) -> None:
    clock, model, profile = timed_case([0.01, 0.01])
    predictor = Predictor(model, profile, clock=clock)
    expected, other = predictor(X).probabilities, predictor(X * 1.8).probabilities
    answer = ask(predictor, X.clone())
    assert torch.equal(answer.probabilities, expected)
    assert not torch.equal(answer.probabilities, other)


def test_a_ring_of_frames_may_be_reused(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.25])
    buffer = torch.zeros(3, 2, 2)
    inner = model.initial_state
    model.initial_state = lambda x: (buffer.fill_(0.0), inner(x))[1]

    def camera():
        for _ in range(2):
            yield buffer.fill_(0.5)

    predictor = Predictor(model, profile, clock=clock)
    found = [frame.answer.probabilities for frame in frames(predictor, camera(), 1.0, lambda seconds: None)]
    model.initial_state = inner
    assert all(torch.equal(probabilities, predictor(X).probabilities) for probabilities in found)


def strange_layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "permuted": x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "transposed": x.mT.contiguous().mT,
        "part of a larger one": torch.nn.functional.pad(x, (1, 2, 3, 0))[:, :, 3:, 1:-2],
        "one pixel, expanded": x[:, :, :1, :1].expand_as(x),
        "one channel": x[:, :1].as_strided((len(x), 1, *x.shape[2:]), (x.stride(0), 1, x.stride(2), x.stride(3))),
        "requires grad": x.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(x),
    }


@pytest.mark.parametrize("layout", strange_layouts(torch.rand(2, 3, 4, 5)))
def test_images_come_in_one_memory_layout(layout: str) -> None:
    x = strange_layouts(torch.rand(2, 3, 4, 5))[layout]
    model = create_model("anytimenet", width=4, blocks=(2, 2, 2), scheme=(1, 1), in_channels=x.shape[1])
    copy = admit(x, model, None)
    assert copy.stride() == torch.empty(x.shape).stride()
    assert torch.equal(copy, x)
    assert copy.data_ptr() != x.data_ptr()
    assert type(copy) is torch.Tensor
    assert copy.is_inference()
    assert not copy.requires_grad


def test_every_prior_has_tensors_of_its_own(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    given = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    predictor = Predictor(model, profile, prior=given, clock=clock)
    expected = given.clone()
    given.fill_(0.2)

    def unstarted() -> Answer:
        go, inner = threading.Event(), model.step
        model.step = lambda state: (go.wait(10), inner(state))[1]
        with predictor.session(X) as session:
            answer = session.best()
            go.set()
        model.step = inner
        return answer

    asks = (
        lambda: predictor(X, 0.001),
        lambda: next(iter(predictor.stream(X, 0.001))),
        lambda: predictor(X, 0.001, contract=True),
        unstarted,
    )
    for ask in asks * 2:
        answer = ask()
        assert answer.step == -1
        assert torch.equal(answer.probabilities, expected[None])
        answer.probabilities.zero_()
        answer.steps.fill_(7)
        answer.macs.fill_(7)


def test_a_given_prior_is_copied(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    before = predictor(X, 0.001)
    for contract in (False, True):
        after = predictor(X, 0.001, prior=before, contract=contract)
        after.probabilities.zero_()
        assert torch.equal(before.probabilities, torch.full((1, 5), 0.2))


def test_a_given_prior_may_change_after_the_call(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    before = predictor(X, 0.001)
    answers = predictor.stream(X, 0.001, prior=before)
    before.probabilities.zero_()
    assert torch.equal(next(answers).probabilities, torch.full((1, 5), 0.2))
    for ask in (predictor.stream, predictor.session):  # a wrong one is refused at the call
        with pytest.raises(ValueError, match="prior must be an answer for as many images"):
            ask(X.expand(2, -1, -1, -1), prior=before)


def test_a_dropped_frame_shares_nothing_with_the_last(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.25])
    seen = []
    for frame in frames(Predictor(model, profile, clock=clock), [X[0]] * 3, 1.0, lambda seconds: None):
        seen.append(frame)
        if frame.number == 0:
            clock.now += 2.0
    first, dropped, _ = seen
    assert dropped.answer.step == -1
    assert torch.equal(dropped.answer.probabilities, first.answer.probabilities)
    assert dropped.answer.probabilities.data_ptr() != first.answer.probabilities.data_ptr()
    assert dropped.answer.steps.data_ptr() != dropped.answer.macs.data_ptr()
