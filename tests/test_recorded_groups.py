"""The groups of a data set's images, such as tracks of frames, reach the guarantee through the trace."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime.data import ImageData, Split
from anytime.model import AnytimeModel
from anytime.stopping import CANDIDATES, Never, certified, conformal
from anytime.trace import Trace, record


class Brightness(AnytimeModel):
    """Confident from the first step: bright images are of class 1."""

    num_steps = 2

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.gain = torch.nn.Parameter(torch.tensor(20.0))

    def initial_state(self, x: Tensor) -> Any:
        return self.gain * torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)

    def step(self, state: Any) -> tuple[Tensor, Any]:
        return state @ torch.eye(2), state


class Tracks(ImageData):
    """Nearly equal frames, alternately black and white from track to track."""

    input_size = (1, 4, 4)

    def __init__(self, grouped: bool, **arguments: Any) -> None:
        super().__init__(validation=0.5, **arguments)
        self.grouped = grouped

    def read_names(self) -> list[list[str]]:
        return [["black", "white"]]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        tracks = torch.arange(40).repeat_interleave(10)
        images = (tracks % 2 * 255).to(torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = tracks, torch.arange(400) % 10  # no two have the same content
        return Split(images, tracks % 2, "made", tracks if self.grouped else None)


def recorded(grouped: bool, part: str = "validation") -> Trace:
    data = Tracks(grouped, eval_batch_size=64)
    data.setup()
    loaders: dict[str, Any] = {"validation": data.val_dataloader, "train": data.train_dataloader}
    return record(Brightness(), loaders[part](), progress=False, seconds=False)


def test_frames_of_a_track_certify_as_one_sample() -> None:
    """A loss of 2 % with 95 % confidence needs 149 independent samples: 180 frames of 18 tracks are 18."""
    trace = recorded(grouped=True)
    assert len(trace.meta["groups"]) == trace.num_samples == 10 * len(set(trace.meta["groups"])) >= 150
    assert certified(trace, 0.02, 0.05).rule == Never()
    assert conformal(trace, 0.02).rule == Never()
    assert recorded(grouped=False).meta["groups"] is None
    assert certified(recorded(grouped=False), 0.02, 0.05).rule == CANDIDATES[-1]


def test_a_trace_in_random_order_does_not_know_its_groups() -> None:
    trace = recorded(grouped=True, part="train")
    assert "groups" not in trace.meta
    with pytest.warns(UserWarning, match="does not say which samples belong together"):
        certified(trace, 0.02, 0.05)


def test_any_loader_may_have_groups() -> None:
    class Loader(list[Any]):
        groups = (3, 3, 5, 5)

    batches = [(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))] * 2
    trace = record(Brightness(), Loader(batches), progress=False, seconds=False)
    assert trace.meta["groups"] == [3, 3, 5, 5]
    assert "groups" not in record(Brightness(), batches, progress=False, seconds=False).meta
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certified(record(Brightness(), batches, progress=False, seconds=False, meta={"groups": None}), 0.5)
