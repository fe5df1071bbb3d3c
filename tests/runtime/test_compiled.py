"""Compiled steps: each once per batch size, warmed, correct in every thread; profiles know whether steps were compiled."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

import anytime
from anytime import Predictor
from anytime.runtime import profile
from anytime.runtime.engines.pytorch import CompiledSteps
from anytime.stopping import Confidence

SIZE = (3, 8, 8)


@pytest.fixture
def uncompiled(monkeypatch) -> list[str]:
    """Replaces the compiler by the identity; lists the names of the functions it was given."""
    given: list[str] = []

    def stand_in(function, dynamic):
        assert dynamic is False
        given.append(function.__code__.co_name)
        return function

    monkeypatch.setattr(torch, "compile", stand_in)
    return given


def tiny():
    torch.manual_seed(0)
    model = anytime.create_model("anytimenet", blocks=(2, 2, 1), scheme=((1, 1, 1), (1, 0, 0), (0, 1, 0)), width=4)
    return model.double().eval()


def test_every_step_is_compiled_once_for_every_batch_size(uncompiled: list[str]) -> None:
    model = tiny()
    CompiledSteps(model, SIZE, (4, 1, 4))
    assert uncompiled == [f"step_{t}_of_{size}" for size in (1, 4) for t in range(1, model.num_steps + 1)]


@pytest.mark.usefixtures("uncompiled")
def test_batches_between_the_compiled_sizes_are_padded(monkeypatch) -> None:
    model, x = tiny(), torch.rand(5, *SIZE, dtype=torch.float64)
    measured = profile(model, SIZE, (1, 2, 8), repeats=1, warmup=0, compile=True)
    given: list[int] = []
    call = CompiledSteps.step

    def noted(self, step, state, size, *rest):
        given.append(size)
        return call(self, step, state, size, *rest)

    monkeypatch.setattr(CompiledSteps, "step", noted)
    confidence = model(x).detach().softmax(2).amax(2)
    rule = Confidence([float(step.sort().values[1]) for step in confidence])  # most leave at each step
    got = Predictor(model, measured, stop=rule, compile=True)(x)
    eager = Predictor(model, stop=rule)(x)
    assert torch.equal(got.steps, eager.steps)
    assert len(set(got.steps.tolist())) > 1
    torch.testing.assert_close(got.probabilities, eager.probabilities, rtol=0, atol=1e-6)
    alive = [int((eager.steps >= step).sum()) for step in range(1, eager.step + 1)]
    assert given == [next(size for size in (1, 2, 8) if size >= left) for left in alive]


@pytest.mark.usefixtures("uncompiled")
def test_profiles_of_compiled_and_eager_steps_are_kept_apart(timed_case: Callable) -> None:
    _, model, eager = timed_case([0.01, 0.02])
    compiled = dataclasses.replace(eager, fingerprint={**eager.fingerprint, "compiled": True})
    assert Predictor(model, compiled, compile=True)(torch.full((1, 3, 2, 2), 0.5)).step == 2
    with pytest.raises(ValueError, match=r"not of eager steps.* give Predictor compile=True"):
        Predictor(model, compiled)
    with pytest.raises(ValueError, match=r"not of compiled steps.*profile\(model, example, compile=True\)"):
        Predictor(model, eager, compile=True, foreign=True)
    with pytest.raises(ValueError, match="compile=True compiles for the image and batch sizes of a profile"):
        Predictor(model, compile=True)
    assert profile(model, (3, 2, 2), repeats=1, compile=True).fingerprint["compiled"] is True


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic(_: object) -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    model.requires_grad_(False)
    yield
    model.requires_grad_(True)


@contextlib.contextmanager
def default_dtype(_: object) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable] = {  # of the caller, after the build: the compiler guards on all of them
    "threads, as after a fork": lambda _: threads(torch.get_num_threads() + 1),
    "deterministic": deterministic,
    "autocast without cache": lambda _: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "frozen": frozen,
    "default dtype": default_dtype,
}


class Counted:
    """A backend that counts what it compiles, and how often that runs."""

    def __init__(self, backend: str) -> None:
        self.inner = torch._dynamo.lookup_backend(backend)
        self.compiled = self.runs = 0

    def __call__(self, graph, example):
        self.compiled += 1
        function = self.inner(graph, example)

        def run(*values):
            self.runs += 1
            return function(*values)

        return run


def answers_of_threads(backend: str, monkeypatch) -> None:
    """No request waits for the compiler, whatever thread, batch size or setting; answers equal those of eager steps."""
    counted = Counted(backend)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    model = tiny()
    measured = profile(model, SIZE, (1, 4), repeats=2, compile=True)
    confidence = model(torch.rand(64, *SIZE, dtype=torch.float64)).detach().softmax(2).amax(2)
    rule = Confidence(float(confidence[:-1].median()))
    predictor, eager = Predictor(model, measured, stop=rule, compile=True), Predictor(model, stop=rule)
    images = [torch.rand(1 + n % 4, *SIZE, dtype=torch.float64) for n in range(8)]
    expected = [eager(x) for x in images]
    compiled = counted.compiled

    def one(x: torch.Tensor):
        with predictor.session(x) as session:
            return session.wait(60)

    def check(found, want, runs: bool = True) -> None:
        assert torch.equal(found.steps, want.steps)
        torch.testing.assert_close(found.probabilities, want.probabilities, rtol=0, atol=1e-6)
        assert counted.compiled == compiled
        assert counted.runs >= found.step if runs else not counted.runs
        counted.runs = 0

    counted.runs = 0
    frame = images[3].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as a camera's [H, W, C]
    layouts = [frame, images[3].contiguous(memory_format=torch.channels_last), images[3].mT.contiguous().mT]
    for x in (images[3], *layouts, torch.nn.Parameter(images[3])):
        check(predictor(x), expected[3])
        check(one(x), expected[3])
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        check(predictor(images[3]), expected[3])
    model.eval()
    for setting in SETTINGS.values():
        with setting(model):
            check(predictor(images[3]), expected[3], runs=False)
        check(predictor(images[3]), expected[3])
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(one, images), expected, strict=True):
            assert torch.equal(got.steps, want.steps)
            torch.testing.assert_close(got.probabilities, want.probabilities, rtol=0, atol=1e-6)
    assert counted.compiled == compiled
    assert counted.runs >= sum(want.step for want in expected)


def test_nothing_is_compiled_after_the_warm_up(monkeypatch) -> None:
    answers_of_threads("eager", monkeypatch)


@pytest.mark.slow
def test_nothing_is_compiled_after_the_warm_up_of_the_real_compiler(monkeypatch) -> None:
    answers_of_threads("inductor", monkeypatch)
