"""`check_anytime_model` names what is broken: a custom family in one file, and the optional members of the contract."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from anytime.model import AnytimeModel, create_model
from anytime.testing import check_anytime_model


class State(NamedTuple):
    step: int
    features: Tensor


class Family(AnytimeModel):
    """h_t = h_{t-1} + relu(block_t(h_{t-1})), h_0 = stem(x), logits_t = head_t(mean over pixels of h_t)."""

    head_names: Any = ("heads",)

    def __init__(self, num_classes: int = 5, in_channels: int = 3, steps: int = 2, activation: Any = None) -> None:
        super().__init__(num_classes, in_channels)
        self.num_steps, self.activation = steps, activation
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(steps))
        self.heads = nn.ModuleList(nn.Linear(4, num_classes) for _ in range(steps))

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        return State(0, self.normalize(x))

    def step(self, state: Any) -> Any:
        t, h = state
        h = self.stem(h) if t == 0 else h
        h = h + self.blocks[t](h).relu()
        return self.heads[t](h.mean((2, 3))), State(t + 1, h)


class Whole(Family):
    """Has the optional members: the halves of a step, features of a trunk, names of heads."""

    keeps_features = True

    def advance(self, state: Any) -> Any:
        return self.step(state)[1]

    def read(self, state: Any) -> Tensor:
        answer: Tensor = self.heads[state.step - 1](state.features.mean((2, 3)))
        return answer

    def trunk_features(self, x: Tensor) -> Any:
        state, features = self.initial_state(x), []
        for _ in range(self.num_steps):
            state = self.advance(state)
            features.append(state.features)
        return features

    def head_answers(self, features: Any) -> Tensor:
        return torch.stack([head(h.mean((2, 3))) for head, h in zip(self.heads, features, strict=True)])


def with_attribute(name: str, value: Any) -> Any:
    """A constructor that sets an attribute at its end."""

    def init(self: Any, *args: Any, **arguments: Any) -> None:
        Family.__init__(self, *args, **arguments)
        setattr(self, name, value)

    return {"__init__": init}


def step_gives(change: Any) -> Any:
    return {"step": lambda self, state: change(*Family.step(self, state))}


def forward_gives(change: Any) -> Any:
    def forward(self: Any, x: Tensor, step: int | None = None) -> Any:
        return change(self, AnytimeModel.forward(self, x, step), step)

    return {"forward": forward}


def clamped_in_place(self: Any, x: Tensor, step: int | None = None) -> Tensor:
    self.check_input(x)
    return AnytimeModel.forward(self, x.clamp_(max=0.5), step)


def clamped(self: Any, x: Tensor) -> State:
    self.check_input(x)
    return State(0, self.normalize(x.clamp(max=0.5)))


def flattened(self: Any, state: State) -> Any:
    """`view` instead of `flatten`: an error for images in channels_last."""
    logits, after = Family.step(self, state)
    return logits + 0 * after.features.view(len(logits), -1).mean(), after


def with_counters(self: Any, x: Tensor) -> Any:
    return {"inner": Family.initial_state(self, x), "counters": x.new_zeros(3)}  # T counters look like a batch of 3


def counted(self: Any, state: Any) -> Any:
    logits, after = Family.step(self, state["inner"])
    return logits, {"inner": after, "counters": state["counters"]}


class TrunkCalledHead(Family):
    head_names = None

    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.head = self.stem


BREAKS: dict[str, tuple[type[Family], dict[str, Any], str]] = {
    "only logits": (Family, step_gives(lambda logits, after: logits), "step 1 gave Tensor"),
    "swapped": (Family, step_gives(lambda logits, after: (after, logits)), r"step 1 gave \['State', 'Tensor'\]"),
    "too many steps": (Family, with_attribute("num_steps", 3), "step 3 raised IndexError"),
    "true": (Family, with_attribute("num_steps", True), "num_steps is True"),
    "other classes": (
        Family,
        step_gives(lambda logits, after: (logits[:, :4], after)),
        r"step 1 gave logits \[3, 4\], expected \[B, K\] = \[3, 5\]",
    ),
    "probabilities": (
        Family,
        step_gives(lambda logits, after: (logits.softmax(1), after)),
        "all answers are probabilities, which sum to 1",
    ),
    "list": (
        Family,
        forward_gives(lambda self, logits, step: logits if step else list(logits)),
        "forward gave a list, expected",
    ),
    "stream": (
        Family,
        {"stream": lambda self, x: list(AnytimeModel.stream(self, x))},
        "stream gave a list, expected an iterator",
    ),
    "training": (
        Family,
        forward_gives(lambda self, logits, step: logits[-1] if self.training else logits),
        r"Gradients .* forward gave \[3, 5\], expected \[T, B, K\] = \[2, 3, 5\]",
    ),
    "detached": (Family, forward_gives(lambda self, logits, step: logits.detach()), "forward gave answers without gradients"),
    "images": (Family, {"forward": clamped_in_place, "initial_state": clamped}, "forward modified the images"),
    "view": (Family, {"step": flattened}, "any memory format.* RuntimeError: view size is not compatible"),
    "normalised twice": (
        Family,
        {"normalize": lambda self, x: AnytimeModel.normalize(self, AnytimeModel.normalize(self, x))},
        "answers to images and to images normalised before differ by",
    ),
    "no batch": (
        Family,
        {"initial_state": with_counters, "step": counted},
        r"state\['counters'\] after step 0 is \[3\] for a batch of 2",
    ),
    "lock": (Family, with_attribute("lock", threading.Lock()), "cannot be copied: TypeError: cannot pickle"),
    "advance": (Family, {"advance": Whole.advance}, "there is advance, but no read"),
    "read": (Family, {"read": Whole.read}, "there is read, but no advance"),
    "keeps": (Family, {"keeps_features": True}, "there is keeps_features, but no trunk_features and no head_answers"),
    "trunk": (
        Family,
        {"trunk_features": Whole.trunk_features, "head_answers": Whole.head_answers},
        "there is trunk_features and head_answers, but no keeps_features",
    ),
    "text": (Whole, {"keeps_features": "no"}, "keeps_features is 'no', not a bool"),
    "one tensor": (
        Whole,
        {"trunk_features": lambda self, x: torch.stack(Whole.trunk_features(self, x))},
        "trunk_features gave a Tensor, expected a list",
    ),
    "reads too much": (
        Whole,
        {"read": lambda self, state: 2 * Whole.read(self, state)},
        r"read\(advance\(state\)\) and the answer of step 1 differ by",
    ),
    "stale": (
        Whole,
        {"head_answers": lambda self, features: Whole.head_answers(self, features[::-1])},
        r"head_answers\(trunk_features\(x\)\) and forward\(x\) differ by",
    ),
    "own": (Family, {"own_normalization": "false"}, "own_normalization is 'false', not a bool"),
    "settled": (Family, with_attribute("settled_arguments", ["steps"]), r"settled_arguments is \['steps'\], not a dict"),
    "measured": (
        Family,
        with_attribute("measured_arguments", {"exits": [1, 2]}),
        "measured_arguments holds 'exits', which settled_arguments lacks",
    ),
    "unknown head": (Family, {"head_names": ("classifier",)}, "head_names holds 'classifier', which is not a submodule"),
    "everything": (Family, {"head_names": ("",)}, "head_names holds '', which is not a submodule"),
    "text head": (Family, {"head_names": "heads"}, "head_names is 'heads', not a tuple of names"),
    "no head": (Family, {"head_names": ()}, r"head_names is \(\), not a tuple of names"),
    "trunk head": (Family, {"head_names": ("stem", "heads")}, "the state after step 1 depends on the heads: stem, heads"),
    "called head": (TrunkCalledHead, {}, "the state after step 1 depends on the heads: head, heads"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_broken_families_are_caught(case: str) -> None:
    base, members, message = BREAKS[case]
    with pytest.raises(AssertionError, match=rf"(?s)^Broken.*{message}"):
        check_anytime_model(type("Broken", (base,), members)(), (3, 8, 8))


def test_whole_families_pass() -> None:
    check_anytime_model(Family(), (3, 8, 8))
    check_anytime_model(Whole(in_channels=1), (1, 8, 8))
    check_anytime_model(type("Untold", (Family,), {"head_names": None})(), (3, 8, 8))
    check_anytime_model(type("Learns", (Whole,), {"keeps_features": False})(), (3, 8, 8))


def test_arguments_that_config_json_cannot_hold() -> None:
    check_anytime_model(create_model(f"{__name__}.Family", 5, activation=[1, "relu"]), (3, 8, 8))
    with pytest.raises(AssertionError, match=r"state dict .* Broken: TypeError: .*not JSON serializable"):
        check_anytime_model(create_model(f"{__name__}.Family", 5, activation=nn.ReLU), (3, 8, 8))
