"""Images and priors are copied on entry, in the memory layout of the warm-up."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from anytime import Answer, Predictor, create_model
from anytime.runtime import frames
from anytime.runtime.door import admit

X = torch.full((1, 3, 2, 2), 0.5)
JAGGED = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)], layout=torch.jagged)


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


def asks_of(predictor: Predictor) -> list[Callable]:
    def background(x: torch.Tensor) -> Answer:
        with predictor.session(x) as session:
            return session.wait(60)

    return [predictor, lambda x: list(predictor.stream(x))[-1], lambda x: predictor(x, contract=True), background]


def test_pixels_beyond_the_unit_interval_are_refused_by_every_way_in(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    wrong = X.clone()
    for value, span in ((255.0, "from 0.5 to 255"), (1.051, "from 0.5 to 1.051"), (-0.051, "from -0.051 to 0.5")):
        wrong[0, 0, 0, 0] = value
        for ask in asks_of(Predictor(model, profile, clock=clock)):
            with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got \[1, 3, 2, 2\] torch.float32 ") as caught:
                ask(wrong)
            assert f"torch.float32 {span}; model.prepare(frame)" in str(caught.value)
    assert model.started == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_overshoot_from_interpolation_is_clamped(timed_case: Callable, dtype: torch.dtype) -> None:
    clock, model, _ = timed_case([0.01])
    predictor = Predictor(model.to(dtype), clock=clock)
    x = X.to(dtype)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = 1.05, -0.05
    given = x.clone()
    for ask in asks_of(predictor)[:2]:
        assert torch.equal(ask(x).probabilities, ask(x.clamp(0, 1)).probabilities)
    assert torch.equal(x, given)  # the caller's images stay as they are
    assert not torch.equal(predictor(x * 0.9).probabilities, predictor(x).probabilities)


def test_a_single_image_needs_no_batch(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    for ask in asks_of(Predictor(model, profile, clock=clock)):
        assert torch.equal(ask(X[0]).probabilities, ask(X).probabilities)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 4, 2, 2), ValueError, r"\[B, 3, H, W\], got \[1, 4, 2, 2\] torch.float32 from 0 to 0"),
        (torch.full((2, 2, 3), 0.5), ValueError, r"\[B, 3, H, W\], got \[2, 2, 3\] torch.float32 from 0.5 to 0.5"),
        (
            torch.full((1, 3, 2, 2), 7, dtype=torch.uint8),
            TypeError,
            r"got torch.uint8 \[1, 3, 2, 2\] from 7 to 7; model.prepare",
        ),
        (torch.full((1, 3, 2, 2), torch.nan), ValueError, r"\[1, 3, 2, 2\] torch.float32, 12 of 12 NaN or infinite"),
        (torch.tensor([0.5, torch.inf, 1, 1] * 3).view(1, 3, 2, 2), ValueError, "from 0.5 to 1, 3 of 12 NaN or infinite"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.complex64), TypeError, r"got torch.complex64 \[1, 3, 2, 2\]"),
        (torch.zeros(4, 6, 3), ValueError, r"images must be \[B, 3, H, W\], got \[4, 6, 3\] torch.float32"),
        (torch.zeros(4, 6, 3).byte(), TypeError, r"got torch.uint8 \[4, 6, 3\] from 0 to 0; model.prepare takes uint8"),
        (torch.zeros(1, 3, 2, 2).to_sparse(), TypeError, "images must be one dense tensor, got a sparse_coo tensor"),
        (torch.zeros(3, 2, 2).to_sparse(), TypeError, "images must be one dense tensor, got a sparse_coo tensor"),
        (JAGGED, TypeError, "images must be one dense tensor, got a jagged tensor"),
        (
            np.full((1, 3, 2, 2), 0.5, np.float32),
            TypeError,
            r"got numpy.ndarray float32 \[1, 3, 2, 2\] from 0.5 to 0.5; make a tensor of them: torch.from_numpy\(x\)$",
        ),
        (
            np.zeros((3, 2, 2)),
            TypeError,
            r"numpy.ndarray float64 \[3, 2, 2\] .* of them: torch.from_numpy\(x.astype\(np.float32\)\)$",
        ),
        (np.zeros((2, 2, 3), np.uint8), TypeError, r"uint8 \[2, 2, 3\] from 0 to 0; model.prepare takes uint8 frames and PIL"),
        (np.full((2, 2), None), TypeError, r"got numpy.ndarray object \[2, 2\]; model.prepare"),
    ],
)
def test_what_is_no_image_is_described(timed_case: Callable, x: torch.Tensor, error: type[Exception], message: str) -> None:
    clock, model, profile = timed_case([0.01])
    for ask in asks_of(Predictor(model, profile, clock=clock)):
        with pytest.raises(error, match=message):
            ask(x)


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


@pytest.mark.parametrize("combine", ["last", "caching", "product", "mixture"])
def test_an_answer_that_is_changed_changes_no_later_one(timed_case: Callable, combine: str) -> None:
    clock, model, profile = timed_case([0.01] * 3)
    predictor = Predictor(model, profile, combine, "patience=3", clock=clock)
    expected = [answer.probabilities for answer in predictor.stream(X)]
    with torch.inference_mode():
        for answer, want in zip(predictor.stream(X), expected, strict=True):
            assert torch.equal(answer.probabilities, want)
            answer.probabilities.fill_(0.2)
            answer.steps.fill_(7)
            answer.macs.fill_(7)
    answer = predictor(X)
    answer.probabilities.fill_(0.2)  # outside inference mode as well
    assert torch.equal(predictor(X).probabilities, expected[-1])


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
