"""Means over the samples of several processes with unequal shares."""

from types import SimpleNamespace

import pytest
import torch

from anytime.training.means import SampleMeans


def joined(*shares: SampleMeans) -> list[SimpleNamespace]:
    """Strategies of processes that hold these shares."""

    def reduce(sums: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        return torch.stack([share._sums for share in shares]).sum(0)

    return [SimpleNamespace(reduce=reduce) for _ in shares]


def test_every_sample_counts_once_however_the_batches_are_shared():
    """3 right of 4 here, 0 of 1 there: 0.6, where the mean of means would be 0.375."""
    here, there = SampleMeans(2, torch.device("cpu")), SampleMeans(2, torch.device("cpu"))
    here.add(torch.tensor([1.0, 2.0]), 3)
    here.add(torch.tensor([0.0, 6.0]), 1)
    there.add(torch.tensor([0.0, 8.0]), 1)
    for share, strategy in zip((here, there), joined(here, there), strict=True):
        assert share.over_processes(strategy).tolist() == pytest.approx([3 / 5, (3 * 2 + 6 + 8) / 5])


def test_a_process_without_samples_gets_the_means_of_the_others():
    full, empty = SampleMeans(1, torch.device("cpu")), SampleMeans(1, torch.device("cpu"))
    full.add(torch.tensor([0.25]), 4)
    for share, strategy in zip((full, empty), joined(full, empty), strict=True):
        assert share.over_processes(strategy).tolist() == [0.25]


def test_asking_twice_gives_the_same_means_and_sums_are_kept_in_float32():
    means = SampleMeans(1, torch.device("cpu"))
    means.add(torch.tensor([0.1], dtype=torch.bfloat16), 300)
    alone = SimpleNamespace(reduce=lambda sums, reduce_op: sums.mul_(1))
    first = means.over_processes(alone)
    assert torch.equal(first, means.over_processes(alone))
    assert first.dtype == torch.float32
    assert first.item() == pytest.approx(torch.tensor(0.1, dtype=torch.bfloat16).item())
