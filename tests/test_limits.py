"""A limit on what a constructor allocates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anytime.support.limits import AllocationLimit, imagined


def test_what_fits_is_built_as_without_the_limit() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 4)
    torch.manual_seed(0)
    with AllocationLimit(36, 2, "a file"):
        limited = nn.Linear(8, 4)
    assert torch.equal(plain.weight, limited.weight)
    with AllocationLimit(10, 3, "a file"):
        assert torch.rand(2, generator=torch.Generator().manual_seed(0)).shape == (2,)
        assert torch.arange(0, 1, 0.25).tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("width", [9, 10**6, 10**9, 10**12])
def test_too_many_elements(width: int) -> None:
    with pytest.raises(ValueError, match="a file asks for more than the 35 values"), AllocationLimit(35, 10, "a file"):
        nn.Linear(width, 4)


def test_too_many_tensors() -> None:
    with pytest.raises(ValueError, match=r"or 10 tensors that fit its weights"), AllocationLimit(10**6, 10, "a file"):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9))


def test_a_wrong_call_fails_as_without_the_limit() -> None:
    with pytest.raises(RuntimeError, match="negative dimension"), AllocationLimit(10, 10, "a file"):
        torch.empty(-1)


def test_tensors_without_memory_do_not_count() -> None:
    with AllocationLimit(10, 1, "a file"):
        with imagined():
            assert torch.zeros(100, device="meta").numel() + torch.ones(100, device="meta").numel() == 200
        with pytest.raises(ValueError, match="a file asks for more than the 10 values"):
            torch.zeros(100)
