"""Answers do not depend on the caller's conditions: train mode, autocast, denormal numbers; and leave them as they are."""

import copy
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import anytime
from anytime import Predictor
from anytime.runtime.conditions import conditions_of
from anytime.runtime.engines.pytorch import CompiledSteps
from anytime.stopping import Confidence

SIZE = (3, 8, 8)
X = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))


def tiny():
    torch.manual_seed(0)
    return anytime.create_model("anytimenet", blocks=(2, 2, 2), scheme=(1, 1), width=4).eval()


def in_session(predictor: Predictor, x: torch.Tensor) -> anytime.Answer:
    with predictor.session(x) as session:
        return session.wait(60)


WAYS: dict[str, Callable] = {
    "call": lambda predictor, x: predictor(x),
    "stream": lambda predictor, x: list(predictor.stream(x))[-1],
    "session": in_session,
    "contract": lambda predictor, x: predictor(x, contract=True),
}
KINDS = ("eager", "rule", "compiled", "lazy")


def predictor_of(kind: str, monkeypatch) -> tuple[torch.nn.Module, Predictor]:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    if kind == "lazy":
        torch.manual_seed(0)
        model = anytime.create_model("ann", units=2, width=4).eval()
    else:
        model = tiny()
    measured = anytime.profile(model, SIZE, (2,), repeats=1, warmup=0, compile=kind == "compiled")
    rule = Confidence(float("inf")) if kind == "rule" else None
    return model, Predictor(model, measured, stop=rule, compile=kind == "compiled", lazy_exits=kind == "lazy")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_put_into_train_mode_later_answers_as_in_eval_mode(kind: str, way: str, monkeypatch) -> None:
    model, predictor = predictor_of(kind, monkeypatch)
    expected = WAYS[way](predictor, X).probabilities
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    torch.testing.assert_close(WAYS[way](predictor, X).probabilities, expected)
    assert all(module.training for module in model.modules())  # a training goes on
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    next(
        m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase) or hasattr(m, "running_mean")
    ).train()
    torch.testing.assert_close(WAYS[way](predictor, X).probabilities, expected)
    assert not model.training


def test_between_the_answers_of_a_stream_the_model_may_be_trained() -> None:
    model = tiny()
    predictor = Predictor(model)
    expected = [answer.probabilities for answer in predictor.stream(X)]
    for answer, want in zip(predictor.stream(X), expected, strict=True):
        torch.testing.assert_close(answer.probabilities, want)
        model.train()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [True, False])
def test_the_callers_mode_changes_in_the_midst_of_a_step(kind: str, way: str, mode: bool, monkeypatch) -> None:
    """As if another thread had called `train(mode)` while a step computes: neither sees anything of the other."""
    model, predictor = predictor_of(kind, monkeypatch)
    expected = WAYS[way](predictor, X).probabilities
    model.train(not mode)
    norm = next(module for module in model.modules() if hasattr(module, "running_mean"))
    before, calls = {name: value.clone() for name, value in model.state_dict().items()}, []
    for module in (norm, list(model.modules())[-1]):
        module.register_forward_pre_hook(lambda *_: calls.append(model.train(mode)))
    assert torch.equal(WAYS[way](predictor, X).probabilities, expected)
    assert len(calls) > 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {module.training for module in model.modules()} == {mode}


def test_no_flag_of_the_model_is_touched() -> None:
    model = tiny().train()
    model.head.eval()
    flags = [module.training for module in model.modules()]
    with conditions_of(model)() as _:
        assert [module.training for module in model.modules()] == flags
        assert not any(module.training for module in conditions_of(model).model.modules())
    assert conditions_of(model) is conditions_of(model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_autocast_changes_no_answer(kind: str, way: str, monkeypatch) -> None:
    _, predictor = predictor_of(kind, monkeypatch)
    expected = WAYS[way](predictor, X).probabilities
    with torch.autocast("cpu", torch.bfloat16):
        answer = WAYS[way](predictor, X)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(answer.probabilities, expected)


class Spy(anytime.AnytimeModel):
    """Notes the conditions of each of its steps, and of its start."""

    def __init__(self) -> None:
        super().__init__(4)
        self.num_steps = 2
        self.weight = torch.nn.Parameter(torch.eye(3, 4))
        self.seen: list[tuple] = []

    def look(self, x: torch.Tensor) -> None:
        flushed = sys.float_info.min * 0.5 == 0.0
        seen = (x @ self.weight).dtype, self.training, flushed, torch.is_inference_mode_enabled(), threading.get_ident()
        self.seen.append(seen)

    def initial_state(self, x: torch.Tensor) -> torch.Tensor:
        self.look(x.mean((2, 3)))
        return x.mean((2, 3))

    def step(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.look(state)
        return state @ self.weight, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_calls_streams_sessions_contracts_and_profiles_compute_under_the_same_conditions(dtype: torch.dtype) -> None:
    model, x = Spy().to(dtype), X.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        measured = anytime.profile(model, SIZE, (2,), repeats=1, warmup=0)
        model.seen.clear()  # counting MACs is not under these conditions
        predictor = Predictor(model.train(), measured)
        for way in WAYS.values():
            way(predictor, x)
        run = predictor._run
        with run.conditions():
            run.step(1, run.start(x, 2), 2)
    assert measured.fingerprint["dtype"] == str(dtype).removeprefix("torch.")
    assert {seen[:-1] for seen in model.seen} == {(dtype, False, True, True)}
    assert len({seen[-1] for seen in model.seen}) == 2  # the session's thread


class Restless(Spy):
    """Puts itself into train mode after each step."""

    def step(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = super().step(state)
        self.train()
        return given


@pytest.mark.parametrize("stop", [None, "confidence=1"])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_puts_itself_into_train_mode_computes_on_in_eval_mode(way: str, stop: str | None) -> None:
    model = Restless().eval()
    predictor = Predictor(model, anytime.profile(model, SIZE, (2,), repeats=1, warmup=0), stop=stop)
    model.seen.clear()
    WAYS[way](predictor, X)
    steps = [seen[1] for seen in model.seen]
    assert len(steps) == 3
    assert way == "contract" or steps == [False] * 3  # forward is one step for the runtime
    assert not model.training


def test_profiles_measure_in_the_precision_of_the_weights(timed_case: Callable) -> None:
    clock, _, _ = timed_case([0.01])
    model = Spy()
    with torch.autocast("cpu", torch.bfloat16):
        anytime.profile(model.train(), SIZE, repeats=1, warmup=0, clock=clock)
    streams = [seen[:-1] for seen in model.seen if seen[3] and seen[2]]
    assert set(streams) == {(torch.float32, False, True, True)}
    assert model.training


def test_denormal_numbers_are_zero_in_every_thread_that_computes_and_only_there() -> None:
    assert sys.float_info.min * 0.5 != 0.0
    model = Spy()
    predictor = Predictor(model)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(predictor, [X] * 4))
        in_session(predictor, X)
        predictor(X)
        assert {seen[2] for seen in model.seen} == {True}
        assert threads.submit(lambda: sys.float_info.min * 0.5).result() != 0.0
    assert sys.float_info.min * 0.5 != 0.0
    torch.set_flush_denormal(True)
    try:
        predictor(X)
        assert sys.float_info.min * 0.5 == 0.0  # as the caller had it
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_denormal_numbers_in_the_threads_of_torch() -> None:
    """They are zero in all that a session computes with, and in a call unless the caller's threads of torch came first."""
    size = 200_000  # torch splits it
    model, shares = Spy(), []

    def zeros() -> float:
        return float(((torch.full((size,), 1e-20) * 1e-19).view(torch.int32) == 0).float().mean())

    def use(first: bool) -> None:
        if first:
            torch.rand(size).mul_(2)
        with conditions_of(model)():
            shares.append(zeros())

    for first in (True, False):
        thread = threading.Thread(target=use, args=(first,))
        thread.start()
        thread.join()
    assert shares == [0.5, 1.0]
    model.step = lambda state: (shares.append(zeros()), (state @ model.weight, state))[1]
    in_session(Predictor(model), X)
    assert shares[2:] == [1.0, 1.0]


@pytest.mark.usefixtures("two_threads")
def test_many_denormal_weights_are_named() -> None:
    model = Spy()
    with torch.no_grad():
        model.weight[0, 0] = 1e-39
    with pytest.warns(UserWarning, match=r"^8.3% of the weights are denormal numbers, .*set_flush_denormal\(True\) before"):
        Predictor(model)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Predictor(copy.deepcopy(model))
        torch.set_num_threads(2)
        Predictor(Spy())
        Predictor(Spy().half())
        empty = Spy()
        empty.weight = torch.nn.Parameter(torch.empty(0))  # all that an export has
        Predictor(empty)


def test_a_compiled_predictor_is_warmed_under_the_conditions_of_its_requests(monkeypatch) -> None:
    given: list[Callable] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: given.append(function) or function)
    model = Spy().train()
    with torch.autocast("cpu", torch.bfloat16):
        CompiledSteps(model, SIZE, (1,))
    assert {seen[:-1] for seen in model.seen} == {(torch.float32, False, True, True)}
    assert model.training
