"""Records which delay kernel a network's batch-norm statistics belong to; those of one kernel are invalid under another."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anytime.models.common.batch_norm import RUNNING
from anytime.models.common.delay_kernels import Kernel, Smoothing

KEY = "dynamics_text"  # in the state dict


class Dynamics(NamedTuple):
    """The dynamics that the rows of statistics and the separate heads in a state dict belong to.

    Attributes:
        taps: Weights of a tapped delay line; () for smoothing and for a serial network.
        alpha: Smoothing factor; None without smoothing.
        per_step: True if each row belongs to a time step; otherwise there is one row, of the settled network or shared by all
            steps. The two rows of a serial network belong to the stale residual and to the settled one.
        first: t of the first answer; None if unknown.
    """

    taps: tuple[float, ...] = ()
    alpha: float | None = None
    per_step: bool = False
    first: int | None = None

    @classmethod
    def of(cls, kernel: Kernel, per_step: bool, first: int | None) -> Dynamics:
        """The dynamics of a delay kernel."""
        if isinstance(kernel, Smoothing):
            return cls((), kernel.alpha, per_step, first)
        return cls(kernel.weights, None, per_step, first)

    def tensor(self) -> Tensor:
        """The record as bytes of text: a buffer that changes of precision do not affect."""
        return torch.tensor(list(json.dumps(self._asdict()).encode()), dtype=torch.uint8)

    @property
    def serial(self) -> bool:
        """Whether these are the dynamics of a serial (or an ordinary) network."""
        return not self.taps and self.alpha is None

    @property
    def memory(self) -> int | None:
        """Time steps until a delayed constant is constant: 1 for a serial network, None for smoothing."""
        if self.alpha is not None:
            return None
        return len(self.taps) - 1 if self.taps else 1

    @property
    def mixed(self) -> bool:
        """Whether one row covers several time steps whose inputs differ."""
        return not self.per_step and (self.alpha is not None or len(self.taps) > 1)

    @property
    def description(self) -> str:
        """A phrase for messages."""
        what = f"the kernel {[*self.taps]}" if self.taps else "a serial network"
        what = what if self.alpha is None else f"smoothing (alpha {self.alpha:g})"
        return what if self.first is None else f"{what} from t = {self.first} on"

    def rows(self, given: Tensor, count: int, delays: int, source: Dynamics) -> Tensor | None:
        """`count` rows for these dynamics, derived from the `given` ones of others; None if that is impossible.

        Args:
            given: Rows `[n, C]` of a batch norm behind `delays` delays in series.
            count: Rows needed.
            delays: Number of delays; in a serial network each block counts as one.
            source: The dynamics that the given rows belong to.
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
        """Whether separate heads of `source` see the same features: at the same times, under the same delays or serially."""
        same_delays = (self.taps or (0.0, 1.0), self.alpha) == (source.taps or (0.0, 1.0), source.alpha)
        return same_delays and source.first in (None, self.first)


def _read_dynamics(state: Mapping[str, Any], prefix: str, delays: Mapping[str, int]) -> Dynamics:
    """The dynamics of a state dict, as recorded in it; if it has no record, ordinary batch norm or a one-step delay."""
    text = state.get(prefix + KEY)
    if text is not None:
        fields = json.loads(bytes(text.tolist()))
        return Dynamics(**fields | {"taps": tuple(fields["taps"])})
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
    raise ValueError("these weights have statistics of several time steps but no record of the delays they were made under")


def convert_state(
    model: nn.Module, state: MutableMapping[str, Any], prefix: str, target: Dynamics, delays: Mapping[str, int]
) -> Dynamics:
    """Makes the statistics in a relative's state dict fit `model`, in place, and returns the dynamics they belonged to.

    Args:
        model: The network to load into; it has the buffer `KEY`.
        state: The state dict.
        prefix: Prefix of the model's names, as in `torch.nn.Module.load_state_dict`.
        target: The dynamics that the model's statistics belong to.
        delays: For each batch norm by name, the number of delays in series before it.

    One row that several time steps shared is used under another kernel, because it may be the settled network's. If it was
    learned under its kernel, it is not, so a warning is issued.

    Raises:
        ValueError: The statistics that the model needs cannot be derived from the given ones.
    """
    buffers = dict(model.named_buffers())
    source = _read_dynamics(state, prefix, delays)
    doubtful = source.mixed and (target.taps, target.alpha) != (source.taps, source.alpha)
    for key in [name for name in state if name.startswith(prefix) and name.endswith("num_batches_tracked")]:
        del state[key]  # only ordinary batch norm has it
    for name, own in buffers.items():
        layer, _, kind = name.rpartition(".")
        given = state.get(prefix + name)
        if kind not in RUNNING or given is None:
            continue
        given = given if given.ndim == 2 else given[None]
        if doubtful and layer in delays and bool((given != (kind == RUNNING[1])).any()):  # not those of a new network
            doubtful = False
            warnings.warn(
                f"these statistics were shared by all time steps under {source.description}: if they were learned so, in "
                f"training or by calibrate, they mix early and settled inputs, and every answer under {target.description} is "
                "wrong; call anytime.calibrate on the converted network",
                stacklevel=8,
            )
        fitting = target.rows(given, len(own), delays[layer], source) if layer in delays else given
        if fitting is None:
            raise ValueError(
                f"{name} has statistics of {len(given)} uses under {source.description}, but {len(own)} are needed under "
                f"{target.description}; these cannot be derived: those of the settled network are not among them"
            )
        state[prefix + name] = fitting.contiguous()  # a copy of each row, also if it becomes the model's (assign=True)
    state[prefix + KEY] = buffers[KEY]
    return source
