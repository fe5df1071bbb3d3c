"""How much each answer counts in the loss: plain functions of the number of answers, one weight each."""

from __future__ import annotations


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"the number of answers must be at least 1, got {n!r}")


def constant(n: int) -> list[float]:
    """w_t = 1 for every answer t = 1..n."""
    _check(n)
    return [1.0] * n


def final_only(n: int) -> list[float]:
    """w_n = 1, all others 0: the last answer alone is trained."""
    _check(n)
    return [0.0] * (n - 1) + [1.0]


def inverse_square(n: int) -> list[float]:
    """w_t = 1 / (n - t + 1)^2: the last answer weighs 1, the one before 1/4, then 1/9 (Kim 2020, eq. 4).

    Example:
        >>> inverse_square(3)
        [0.1111111111111111, 0.25, 1.0]
    """
    _check(n)
    return [1.0 / (n - t + 1) ** 2 for t in range(1, n + 1)]


SCHEMES = {scheme.__name__: scheme for scheme in (constant, final_only, inverse_square)}
