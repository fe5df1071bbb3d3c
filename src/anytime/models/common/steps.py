"""The end of a run: no step follows the last answer."""

from __future__ import annotations


def require_step_left(done: int, num_steps: int) -> None:
    """Raises ValueError if a run has given all its answers.

    Args:
        done: Steps done.
        num_steps: T.
    """
    if done >= num_steps:
        raise ValueError(f"all {num_steps} steps are done")
