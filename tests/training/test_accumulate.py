"""Several batches per optimizer step: schedules, regimes, randomness and interruptions count optimizer steps."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from anytime.model import create_model
from anytime.training import Cosine, Joint, Mixed
from anytime.training.callbacks import Interrupted
from anytime.training.checkpoints import read_checkpoint


class Signal(L.Callback):
    """Sends a signal before batch number `batch`, counted from 1 over all epochs."""

    def __init__(self, batch: int, number: signal.Signals) -> None:
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), self.number)


def rates(train: Any, each: Any, model: Any, data: Any, run: Path, regime: Any) -> list[float]:
    """The learning rate at every batch of two epochs of 12 batches, 5 per step."""
    seen: list[float] = []
    look = each(lambda module, _: seen.append(module.optimizers().param_groups[0]["lr"]))
    how = {"settings": {"accumulate": 5}, "schedule": Cosine(), "data": data, "callbacks": [look]}
    train(model, regime, run, epochs=2, **how)
    return seen


def small_batches(digits: Any, size: int) -> Any:
    data = digits(augment="none")
    data.batch_size = size
    return data


def test_schedules_count_optimizer_steps(exits: Any, digits: Any, train: Any, each: Any, tmp_path: Path) -> None:
    """3 steps of 5, 5 and 2 batches in each epoch; the last of 6 steps is at 5/6 of the schedule."""
    seen = rates(train, each, exits(), small_batches(digits, 8), tmp_path, Joint())
    steps = [step for epoch in range(2) for step, batches in enumerate((5, 5, 2), 3 * epoch) for _ in range(batches)]
    assert seen == pytest.approx([0.05 * Cosine()(step / 6) for step in steps])


def test_each_phase_of_mixed_counts_optimizer_steps(exits: Any, digits: Any, train: Any, each: Any, tmp_path: Path) -> None:
    seen = rates(train, each, exits(), small_batches(digits, 8), tmp_path, Mixed(1))
    steps = [step for _ in range(2) for step, batches in enumerate((5, 5, 2)) for _ in range(batches)]
    assert seen == pytest.approx([0.05 * Cosine()(step / 3) for step in steps])


def test_two_batches_of_16_are_one_of_32(own_net: str, digits: Any, train: Any, tmp_path: Path) -> None:
    whole, halves = (create_model(own_net, in_channels=1) for _ in range(2))
    halves.load_state_dict(whole.state_dict())
    train(whole, Joint(), tmp_path / "whole", data=small_batches(digits, 32))
    trainer = train(halves, Joint(), tmp_path / "halves", data=small_batches(digits, 16), settings={"accumulate": 2})
    assert trainer.global_step == 6
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_signal_between_batches_waits_for_the_step(
    exits: Any, digits: Any, train: Any, tmp_path: Path, number: signal.Signals, batch: int
) -> None:
    """3 batches an epoch, 2 per step: steps end after batches 2, 3, 5 and 6. Dropout differs between batches of one step."""
    how = {"settings": {"accumulate": 2}}
    whole = exits()
    train(whole, Joint(), tmp_path / "whole", data=digits(), **how)
    handlers = [signal.getsignal(known) for known in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted):
        train(exits(), Joint(), tmp_path / "run", data=digits(), callbacks=[Signal(batch, number)], **how)
    assert [signal.getsignal(known) for known in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == {1: 1, 2: 1, 3: 2, 5: 3}[batch]
    again = exits()
    train(again, Joint(), tmp_path / "run", data=digits(), resume=True, **how)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


class Twice(Signal):
    """Sends it twice at once, as `timeout` does."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            kill = f"kill -{self.number.value} {os.getpid()}"
            subprocess.run(["sh", "-c", f"{kill}; {kill}"], check=True)


def test_a_signal_that_comes_twice_at_once_is_one(exits: Any, digits: Any, train: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(exits(), Joint(), tmp_path / "run", data=digits(), callbacks=[Twice(2, signal.SIGTERM)])
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 2


def test_batches_of_one_step_have_their_own_randomness(exits: Any, digits: Any, train: Any, each: Any, tmp_path: Path) -> None:
    seen: list[float] = []
    look = each(lambda *_: seen.append(torch.rand(()).item()))
    train(exits(), Joint(), tmp_path, epochs=1, data=small_batches(digits, 16), callbacks=[look], settings={"accumulate": 2})
    assert len(set(seen)) == len(seen) == 6
