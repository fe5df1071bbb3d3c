"""`check_anytime_model` names what is broken: models that break the required part of the contract."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel
from anytime.testing import check_anytime_model


class ToyState(NamedTuple):
    step: int
    images: Tensor
    h: Tensor


class Toy(AnytimeModel):
    """h_t = h_{t-1} + tanh(layer_t(h_{t-1})), logits = head(h_t)."""

    num_steps = 3

    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.stem = nn.Conv2d(in_channels, 6, 3, 2)
        self.norm = nn.BatchNorm2d(6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, num_classes)

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x, 3)
        x = self.normalize(x)
        return ToyState(0, x, x.new_zeros(len(x), 6))

    def step(self, state: Any) -> tuple[Tensor, Any]:
        h = self.norm(self.stem(state.images)).mean((2, 3)) if state.step == 0 else state.h
        h = h + torch.tanh(self.layers[state.step](h))
        return self.head(h), ToyState(state.step + 1, state.images, h)


class NoNormalization(Toy):
    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x, 3)
        return ToyState(0, x, x.new_zeros(len(x), 6))


class NoInputCheck(Toy):
    def initial_state(self, x: Tensor) -> Any:
        x = self.normalize(x.to(self.mean))
        return ToyState(0, x, x.new_zeros(len(x), 6))


class BatchLast(Toy):
    def initial_state(self, x: Tensor) -> Any:
        step, images, h = super().initial_state(x)
        return ToyState(step, images, h.T)


class StringInState(Toy):
    def initial_state(self, x: Tensor) -> Any:
        return (*super().initial_state(x), "note")

    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(ToyState(*state[:3]))
        return logits, (*after, "note")


class HiddenState(Toy):
    """Keeps h in the module."""

    def initial_state(self, x: Tensor) -> Any:
        self.h = torch.zeros(())
        return super().initial_state(x)

    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state if state.step == 0 else state._replace(h=self.h))
        self.h = after.h
        return logits, after._replace(h=after.h * 0)


class HiddenInput(Toy):
    """Keeps the images in the module: right while one session lives."""

    def initial_state(self, x: Tensor) -> Any:
        state = super().initial_state(x)
        self.images = state.images
        return state._replace(images=state.images * 0)

    def step(self, state: Any) -> tuple[Tensor, Any]:
        return super().step(state._replace(images=self.images))


class InPlaceStep(Toy):
    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        state.h.add_(after.h)
        return logits, after


class WritesIntoFirstState(Toy):
    def initial_state(self, x: Tensor) -> Any:
        self.first = super().initial_state(x)
        return self.first

    def step(self, state: Any) -> tuple[Tensor, Any]:
        if state.step == 1:
            self.first.h.add_(1)
        return super().step(state)


class WritesIntoLastAnswer(Toy):
    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        if state.step > 0:
            self.last.add_(1)
        self.last = logits
        return logits, after


class WritesIntoImages(Toy):
    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x, 3)
        return super().initial_state(x.clamp_(max=0.5))


class AccumulatesInPlace(Toy):
    """Adds the new answer to the old one in place."""

    def initial_state(self, x: Tensor) -> Any:
        return (*super().initial_state(x), x.new_zeros(len(x), self.num_classes))

    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(ToyState(*state[:3]))
        total = logits if state[0] == 0 else state[3].add_(logits)
        return total, (*after, total)


class SchedulesDiffer(Toy):
    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        return super().forward(x, step) * (1 + 1e-6)


class SchedulesDifferInFloat32(Toy):
    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        return super().forward(x, step) * (1 + 1e-2 * (x.dtype == torch.float32))


class WrongShape(Toy):
    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        return super().forward(x, step).transpose(0, 1)


class ShortStream(Toy):
    def stream(self, x: Tensor) -> Any:
        return iter(list(super().stream(x))[:-1])


class EagerStream(Toy):
    """All steps are paid by the first."""

    def stream(self, x: Tensor) -> Any:
        def answers() -> Any:
            yield from list(super(EagerStream, self).stream(x))

        return answers()


class WrongSingleAnswer(Toy):
    def answer(self, x: Tensor, step: int) -> Tensor:
        return super().answer(x, max(step - 1, 1))


class JumpsBack(Toy):
    """The state of a jump is one step behind its answer."""

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, Any]:
        return super().jump(x, step)[0], super().jump(x, max(step - 1, 1))[1]


class DearJump(Toy):
    def jump(self, x: Tensor, step: int) -> tuple[Tensor, Any]:
        super().jump(x, min(step + 1, self.num_steps))
        return super().jump(x, step)

    def answer(self, x: Tensor, step: int) -> Tensor:
        return super().jump(x, step)[0]


class AnyStep(Toy):
    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        return super().forward(x, step if step is None else max(1, min(step, self.num_steps)))


class DearSingleAnswer(Toy):
    def answer(self, x: Tensor, step: int) -> Tensor:
        return self.forward(x)[step - 1]


class Recomputes(Toy):
    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits + 0 * self.norm(self.stem(state.images)).mean(), after


class MixesSamples(Toy):
    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits - 0.1 * logits.mean(0), after


class Random(Toy):
    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits + 1e-3 * torch.rand_like(logits), after


class PositionMatters(Toy):
    """Each sample carries its place in the first batch: compaction is right, any later use of places is not."""

    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits * (1 + torch.arange(len(logits)))[:, None], after


class DeadParameter(Toy):
    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.unused = nn.Linear(2, 2)


class ZeroGradient(Toy):
    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.gate = nn.Parameter(torch.ones(()))

    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits * self.gate.round(), after


class InfiniteGradient(Toy):
    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits + (logits * 0).abs().sqrt(), after


class FloatConstant(Toy):
    """A tensor that is no buffer does not follow `model.to`."""

    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.scale = torch.full((num_classes,), 2.0)

    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits * self.scale, after


class UnsavedStatistics(Toy):
    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.register_buffer("running_scale", torch.ones(num_classes), persistent=False)

    def step(self, state: Any) -> tuple[Tensor, Any]:
        logits, after = super().step(state)
        return logits * self.running_scale, after


class ChangesMode(Toy):
    def initial_state(self, x: Tensor) -> Any:
        self.norm.eval()
        return super().initial_state(x)


class CountsRuns(Toy):
    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.register_buffer("runs", torch.zeros(()))

    def initial_state(self, x: Tensor) -> Any:
        self.runs += 1
        return super().initial_state(x)


class NoMean(Toy):
    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        mean = self.mean
        del self.mean
        self.mean = mean


class WrongLevels(Toy):
    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.levels = (num_classes, 2)


class NoSteps(Toy):
    num_steps = 0


def test_user_model_keeps_the_contract() -> None:
    check_anytime_model(Toy(), (3, 8, 8))
    check_anytime_model(Toy(in_channels=1), (1, 5, 7), batch_size=4)


BROKEN: list[tuple[type[Toy], str]] = [
    (NoNormalization, "forward gives the same answers whatever 'mean' is"),
    (NoInputCheck, r"forward\(x\) with 4 channels instead of 3 raised RuntimeError"),
    (BatchLast, r"state.*h after step 0 is \[6, 2\] for a batch of 2"),
    (StringInState, r"state\[3\] after step 0 is a str, neither a tensor nor a number"),
    (HiddenState, r"two calls of step 2 on one state differ by \d.*allowed is 1e-10"),
    (HiddenInput, r"two interleaved sessions"),
    (InPlaceStep, "step 1 modified the state it was given"),
    (AccumulatesInPlace, "step 2 modified the state it was given"),
    (WritesIntoFirstState, "a later step modified an earlier state"),
    (WritesIntoLastAnswer, "a later step modified an earlier answer"),
    (WritesIntoImages, "forward modified the images"),
    (SchedulesDiffer, r"stream and forward \(torch.float64\) at step 1 differ by .*e-0[67]"),
    (SchedulesDifferInFloat32, r"stream and forward \(torch.float32\) at step 1 differ by \d"),
    (WrongShape, r"forward gave \[3, 3, 5\]|stream and forward"),
    (ShortStream, "stream gave 2 answers, expected 3"),
    (EagerStream, "step 2 adds 0 MACs"),
    (WrongSingleAnswer, r"forward\(x, step=2\) and forward\(x\)\[1\] differ by"),
    (JumpsBack, r"the answers from jump\(x, 2\) on, and those of forward\(x\) differ by"),
    (DearJump, r"jump\(x, 2\) costs \d+ MACs, the stream up to it \d+"),
    (AnyStep, r"forward\(x, step=-1\) was accepted, with T = 3"),
    (DearSingleAnswer, r"only answer 1 costs \d+ MACs, the stream up to it \d+"),
    (Recomputes, "step 1 ran 'stem' again on its input of step 1"),
    (MixesSamples, "answers to sample 0 by itself and in a batch differ by"),
    (Random, r"differ by \d"),
    (PositionMatters, "answers to sample 1 by itself and in a batch"),
    (DeadParameter, "2 of 14 parameters get none: unused.weight, unused.bias; freeze those that no answer uses with requires"),
    (ZeroGradient, "1 of 13 parameters get none: gate"),
    (InfiniteGradient, "gradients are not finite"),
    (FloatConstant, "in torch.bfloat16 it answered in torch.float32"),
    (UnsavedStatistics, "before and after the round trip differ by"),
    (ChangesMode, "forward changed the mode of a module"),
    (CountsRuns, "forward in eval mode changed the buffer 'runs'"),
    (NoMean, "there is no buffer 'mean'"),
    (WrongLevels, r"levels \(5, 2\), but num_classes is 5"),
    (NoSteps, "num_steps is 0"),
]


@pytest.mark.parametrize(("model", "message"), BROKEN, ids=[model.__name__ for model, _ in BROKEN])
def test_broken_models_are_caught(model: type[Toy], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)^{model.__name__}: .* Broken: .*{message}"):
        check_anytime_model(model(), (3, 8, 8))


def test_a_parameter_that_no_answer_uses_may_be_frozen() -> None:
    model = DeadParameter()
    model.unused.requires_grad_(False)
    check_anytime_model(model, (3, 8, 8))


def test_needs_a_model_and_a_batch() -> None:
    with pytest.raises(AssertionError, match=r"subclass of anytime\.AnytimeModel, got a Linear"):
        check_anytime_model(nn.Linear(2, 2), (3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        check_anytime_model(Toy(), (3, 8, 8), batch_size=1)


def test_zero_initialised_branches_are_no_mistake() -> None:
    """As ResNets do: last layers start at zero, so that the untouched model has dead gradients and equal inputs."""
    model = Toy()
    for layer in model.layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    check_anytime_model(model, (3, 8, 8))


def test_the_model_and_the_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    model = Toy().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    check_anytime_model(model, (3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.norm.training
    assert all(p.grad is None for p in model.parameters())
    assert all(not module._forward_pre_hooks for module in model.modules())
