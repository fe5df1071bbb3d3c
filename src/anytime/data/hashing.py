"""Stateless random numbers: the same on every device, in any order, for any sharding.

Random choices are functions of integers (seed, epoch, sample index), not draws from a generator that other code may have
advanced. The function is splitmix64 (Steele, Lea & Flood, OOPSLA 2014) in wrapping int64 arithmetic.
"""

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the same 64 bits as `word`."""
    return (word + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """splitmix64 of every int64 in `x`: a bijection whose output bits look independent."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FACTORS[0]
    x = (x ^ _shift(x, 27)) * _FACTORS[1]
    return x ^ _shift(x, 31)


def keys(indices: Tensor, *words: int) -> Tensor:
    """One 64-bit key per index `[N]`, a function of `words` and that index only. Returns int64 `[N]`."""
    state = torch.zeros((), dtype=torch.int64, device=indices.device)
    for word in words:
        state = splitmix64(state ^ _signed(word))
    return splitmix64(state ^ indices)


def randint(keys: Tensor, n: int, salt: int) -> Tensor:
    """Integers in `[0, n)`, uniform over keys; different `salt`s give independent integers for the same key."""
    return _shift(splitmix64(keys ^ _signed(salt)), 33) % n


def permutation(n: int, *words: int) -> Tensor:
    """A permutation of `0..n-1` that is a function of `words` only. Returns int64 `[n]` on the CPU."""
    return torch.argsort(keys(torch.arange(n), *words), stable=True)
