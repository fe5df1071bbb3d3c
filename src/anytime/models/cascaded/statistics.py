"""Of which dynamics the running statistics of a network are: rows of one delay kernel mean nothing under another."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anytime.models.common.delay_kernels import Kernel, Smoothing
from anytime.models.common.step_norm import RUNNING

KEY = "dynamics_text"  # of the state dict


class Dynamics(NamedTuple):
    """What a state dict says of its rows of statistics and of its separate heads.

    Attributes:
        taps: Weights of a tapped delay line; () of smoothing and of a serial network.
        alpha: Of smoothing.
        per_step: Whether rows are those of time steps; else there is one, of the settled network or shared by all steps. The
            two rows of a serial network are the stale residual's and the settled one's.
        first: t of the first answer; None if unknown.
    """

    taps: tuple[float, ...] = ()
    alpha: float | None = None
    per_step: bool = False
    first: int | None = None

    @classmethod
    def of(cls, kernel: Kernel, per_step: bool, first: int | None) -> Dynamics:
        """Those of a delay kernel."""
        if isinstance(kernel, Smoothing):
            return cls((), kernel.alpha, per_step, first)
        return cls(kernel.weights, None, per_step, first)

    def tensor(self) -> Tensor:
        """As text, byte by byte: a buffer that no change of precision touches."""
        return torch.tensor(list(json.dumps(self._asdict()).encode()), dtype=torch.uint8)

    @property
    def memory(self) -> int | None:
        """Steps of time until a delayed constant is constant; of a serial network 1, of smoothing None."""
        if self.alpha is not None:
            return None
        return len(self.taps) - 1 if self.taps else 1

    @property
    def mixed(self) -> bool:
        """Whether one row is for several time steps whose inputs differ."""
        return not self.per_step and (self.alpha is not None or len(self.taps) > 1)

    @property
    def description(self) -> str:
        """For messages."""
        what = f"the kernel {[*self.taps]}" if self.taps else "a serial network"
        what = what if self.alpha is None else f"smoothing (alpha {self.alpha:g})"
        return what if self.first is None else f"{what} from t = {self.first} on"

    def rows(self, given: Tensor, count: int, delays: int, source: Dynamics) -> Tensor | None:
        """`count` rows for these dynamics out of those `given` by others; None where they cannot be told.

        Args:
            given: `[n, C]` of a batch norm behind `delays` delays in a row.
            count: Rows wanted.
            delays: Of a serial network as if each block were one.
            source: What the given rows are of.
        """
        if not source.per_step:
            return given[-1:].expand(count, -1)
        if self.per_step and (self.taps, self.alpha) == (source.taps, source.alpha):
            return given[torch.arange(count).clamp(max=len(given) - 1)]  # later steps take the last row
        if source.memory is None:
            return None
        settled = delays * source.memory if source.taps else 1
        if len(given) <= settled:
            return None
        if self.per_step and self.memory == 1 and not self.taps and source.taps == (0.0, 1.0):
            return given[settled - 1 : settled + 1]  # the stale residual is that of the step before
        return given[settled].expand(count, -1)

    def shares_heads(self, source: Dynamics) -> bool:
        """Whether separate heads of `source` answer to the same: the same times, under the same delays or serially."""

        def clock(dynamics: Dynamics) -> Any:
            return dynamics.taps or (0.0, 1.0), dynamics.alpha

        return clock(self) == clock(source) and (source.first is None or self.first == source.first)


def _stated(state: Mapping[str, Any], prefix: str, delays: Mapping[str, int]) -> Dynamics:
    """What a state dict is of: it says so itself; one without a word has ordinary batch norm, or a one-step delay's rows."""
    text = state.get(prefix + KEY)
    if text is not None:
        found = json.loads(bytes(text.tolist()))
        return Dynamics(**found | {"taps": tuple(found["taps"])})
    rows = {
        name: value.shape[0]
        for name in delays
        for value in [state.get(f"{prefix}{name}.{RUNNING[0]}")]
        if value is not None and value.ndim == 2
    }
    if all(count == 1 for count in rows.values()):
        return Dynamics()
    if all(count == delays[name] + 1 for name, count in rows.items()):
        return Dynamics((0.0, 1.0), None, True)
    raise ValueError("these weights have statistics of several time steps and do not say under which delays they were made")


def convert_state(
    model: nn.Module, state: MutableMapping[str, Any], prefix: str, target: Dynamics, delays: Mapping[str, int]
) -> Dynamics:
    """Makes the statistics in the state dict of a relative fit `model`, in place, and says what they were of.

    Args:
        model: Has the buffer `KEY`.
        state: From tensors of names that begin with `prefix`.
        prefix: As in `torch.nn.Module.load_state_dict`.
        target: What the statistics of the model are of.
        delays: Names of the batch norms, and behind how many delays in a row each lies.

    Raises:
        ValueError: The statistics that the model needs are not among those given.
    """
    buffers = dict(model.named_buffers())
    source = _stated(state, prefix, delays)
    for key in [name for name in state if name.startswith(prefix) and name.endswith("num_batches_tracked")]:
        del state[key]  # of ordinary batch norm
    for name, own in buffers.items():
        layer, _, kind = name.rpartition(".")
        given = state.get(prefix + name)
        if kind not in RUNNING or given is None:
            continue
        given = given if given.ndim == 2 else given[None]
        fitting = target.rows(given, len(own), delays[layer], source) if layer in delays else given
        if fitting is None:
            raise ValueError(
                f"{name} has statistics of {len(given)} uses, but {len(own)} are needed, which cannot be told from those: "
                f"they are of {source.description}, these of {target.description}; "
                "those of the settled network are not among them"
            )
        state[prefix + name] = fitting.contiguous()  # rows of their own, also where they become the model's (assign=True)
    state[prefix + KEY] = buffers[KEY]
    return source
