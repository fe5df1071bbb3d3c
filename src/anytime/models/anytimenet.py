"""AnytimeNet: a ResNet that grows while it answers (Kim, Bradford, Shao: AnytimeNet, DATE 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from anytime.model import AnytimeModel
from anytime.models.common.layers import add_shortcut, check_depth, he_init, pooled
from anytime.models.common.step_norm import StepBatchNorm2d
from anytime.models.common.steps import require_step_left
from anytime.registry import variant

Scheme = tuple[int, ...] | tuple[tuple[int, ...], ...] | None
SMALLEST = 4  # pixels: leaves one for the last of three sections


class SectionRun(NamedTuple):
    """Blocks `first` to `last` (exclusive) of one section, run in one step; block b uses statistics `rows[b - first]`."""

    first: int
    last: int
    rows: tuple[int, ...]


def growth(blocks: Sequence[int], scheme: Scheme) -> tuple[tuple[int, ...], ...]:
    """How many blocks each section gains at each step, `[T][sections]`.

    A flat scheme is the paper's: `(1, 4, 3)` starts with 1 block in every section, then adds 4 and 3 to the first section,
    then to the second, and so on. A nested scheme lists the gains of each step, e.g. `((1, 1, 1), (0, 2, 1))`. None is a
    single step with all blocks.

    Raises:
        ValueError: The gains do not add up to `blocks`, a step gains nothing, or the first leaves a section empty.
    """
    blocks = tuple(blocks)
    if not blocks or min(blocks) < 1:
        raise ValueError(f"blocks must be at least 1 in every section, got {blocks}")
    check_depth("blocks", blocks)
    sections = range(len(blocks))
    gains: list[tuple[int, ...]]
    if scheme is None:
        gains = [blocks]
    elif scheme and all(isinstance(number, int) for number in scheme):
        start, *more = (int(number) for number in scheme)  # type: ignore[arg-type]
        gains = [(start,) * len(blocks)]
        gains += [tuple(n if s == section else 0 for s in sections) for section in sections for n in more]
    elif scheme and all(isinstance(step, Sequence) for step in scheme):
        gains = [tuple(step) for step in scheme]  # type: ignore[arg-type]
    else:
        raise ValueError(
            f"scheme must be numbers like (1, 4, 3) or gains per step like ((1, 1, 1), (4, 0, 0)), got {scheme!r}"
        )
    if any(len(step) != len(blocks) or min(step) < 0 or sum(step) == 0 for step in gains):
        raise ValueError(f"each step of the scheme must add blocks to some of the {len(blocks)} sections, got {scheme!r}")
    if min(gains[0]) < 1:
        raise ValueError(f"the first step needs at least one block in every section, got {gains[0]}")
    total = tuple(sum(column) for column in zip(*gains, strict=True))
    if total != blocks:
        raise ValueError(f"scheme {scheme!r} adds up to {total} blocks, but blocks={blocks}")
    return tuple(gains)


def schedule(gains: Sequence[Sequence[int]]) -> list[list[SectionRun | None]]:
    """What runs at each step, `[T][sections]`: None where the section's cached output is still valid.

    New blocks are appended to their section. If the section below changed in this step, all blocks run again, otherwise only
    the new ones. A block's row of statistics is the number of times it has run before.
    """
    present = [0] * len(gains[0])
    uses = [[0] * sum(column) for column in zip(*gains, strict=True)]
    steps: list[list[SectionRun | None]] = []
    for step in gains:
        runs: list[SectionRun | None] = []
        changed = not steps  # the input of the first section changes only once, at the start
        for section, gain in enumerate(step):
            first = 0 if changed else present[section]
            present[section] += gain
            last = present[section]
            changed = first < last
            runs.append(SectionRun(first, last, tuple(uses[section][first:last])) if changed else None)
            for block in range(first, last):
                uses[section][block] += 1
        steps.append(runs)
    return steps


class PreActBlock(nn.Module):
    """h + conv3x3(relu(bn(conv3x3(relu(bn(h)))))), full pre-activation.

    A widening block halves the resolution in its first convolution; its shortcut is average-pooled and padded with zero
    channels.
    """

    def __init__(self, channels: int, out_channels: int, rows: int, eps: float) -> None:
        super().__init__()
        stride = 1 if channels == out_channels else 2
        self.norm1 = StepBatchNorm2d(channels, rows, eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = StepBatchNorm2d(out_channels, rows, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)

    def forward(self, h: Tensor, row: int) -> Tensor:
        out = self.conv1(F.relu_(self.norm1(h, row)))
        out = self.conv2(F.relu_(self.norm2(out, row)))
        return add_shortcut(out, h)


class AnytimeNetState(NamedTuple):
    """`features` are the last outputs of the sections (before the first step, only the normalised images)."""

    step: int
    features: tuple[Tensor, ...]


class AnytimeNet(AnytimeModel):
    """A pre-activation ResNet of several sections that gains blocks step by step and answers after each step.

    Step t: h_s <- (new blocks of section s)(h_s), or (all blocks of section s)(h_{s-1}) if h_{s-1} has changed in this step;
    logits = OUT(h_S), OUT = BN-ReLU-global average pooling-linear, shared by all steps. Only one tensor per section is cached,
    and no block runs again on an unchanged input (Fig. 2 and Table I of the paper).

    The width doubles and the resolution halves from one section to the next. Batch norm has the paper's `eps`, 0.001. With a
    single step (`scheme=None`) this is the paper's BASELINE.

    The paper does not specify how batch norm treats blocks that run several times. Training is the same either way, since it
    normalises by the batch; in evaluation `statistics="per_use"` (default) has running statistics for each use of a block,
    `"shared"` one mixture for all. On validation images of the digits (3 seeds, `results/anytimenet_statistics`), per use is
    more accurate at every step, most of all at the first: 89.0 against 14.9 % at step 1, 98.3 against 92.6 % at step 7.

    Args:
        num_classes: K of the logits, or the sizes of several label levels.
        in_channels: Channels of the images.
        blocks: Residual blocks per section.
        scheme: (1, 4, 3): start with 1 block per section, then add 4 and 3 to one section after the other; or gains per step.
        width: Channels of the first section.
        statistics: Running batch-norm statistics "per_use" of a block, or "shared" by all uses.
        eps: Added to the variance in batch norm.

    Source: Kim, Bradford, Shao, DATE 2020, sections II and III-A.
    """

    def __init__(
        self,
        num_classes: int | tuple[int, ...] = 10,
        in_channels: int = 3,
        blocks: tuple[int, ...] = (8, 8, 8),
        scheme: Scheme = (1, 4, 3),
        width: int = 16,
        statistics: Literal["per_use", "shared"] = "per_use",
        eps: float = 1e-3,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width!r}")
        if statistics not in ("per_use", "shared"):
            raise ValueError(f"statistics must be 'per_use' or 'shared', got {statistics!r}")
        gains = growth(blocks, scheme)
        self.schedule = schedule(gains)
        self.num_steps = len(gains)
        self.present = [tuple(accumulate(column)) for column in zip(*gains, strict=True)]  # [sections][T]
        separate = statistics == "per_use"
        widths = [width * 2**section for section in range(len(gains[0]))]
        self.stem = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.sections = nn.ModuleList()
        for section, channels in enumerate(widths):
            uses = [self._uses(section, block, self.num_steps) for block in range(self.present[section][-1])]
            inputs = [widths[max(section - 1, 0)]] + [channels] * (len(uses) - 1)
            rows = uses if separate else [1] * len(uses)
            self.sections.append(nn.ModuleList(PreActBlock(i, channels, r, eps) for i, r in zip(inputs, rows, strict=True)))
        self.norm = StepBatchNorm2d(widths[-1], self.num_steps if separate else 1, eps)
        self.head = nn.Linear(widths[-1], self.num_classes)
        he_init(self)

    def _uses(self, section: int, block: int, steps: int) -> int:
        """How often a block runs in the first `steps` steps."""
        runs = [self.schedule[t][section] for t in range(steps)]
        return sum(run is not None and run.first <= block < run.last for run in runs)

    def _out(self, h: Tensor, row: int) -> Tensor:
        return self.head(pooled(F.relu_(self.norm(h, row))))

    def _run(self, section: int, run: SectionRun, h: Tensor) -> Tensor:
        for block, row in zip(range(run.first, run.last), run.rows, strict=True):
            h = self.sections[section][block](h, row)  # type: ignore[index]
        return h

    def initial_state(self, x: Tensor) -> AnytimeNetState:
        self.check_input(x, SMALLEST)
        return AnytimeNetState(0, (self.normalize(x),))

    def step(self, state: AnytimeNetState) -> tuple[Tensor, AnytimeNetState]:
        require_step_left(state.step, self.num_steps)
        below = self.stem(state.features[0]) if state.step == 0 else state.features[0]
        features: list[Tensor] = []
        for section, run in enumerate(self.schedule[state.step]):
            h = below if run is not None and run.first == 0 else state.features[section]
            below = h if run is None else self._run(section, run, h)
            features.append(below)
        return self._out(below, state.step), AnytimeNetState(state.step + 1, tuple(features))

    def jump(self, x: Tensor, step: int) -> tuple[Tensor, AnytimeNetState]:
        """Runs the sub-network of step `step` from scratch: every block present by then runs once."""
        self.check_step(step)
        h, features = self.stem(self.initial_state(x).features[0]), []
        for section, present in enumerate(self.present):
            rows = tuple(self._uses(section, block, step) - 1 for block in range(present[step - 1]))
            h = self._run(section, SectionRun(0, len(rows), rows), h)
            features.append(h)
        return self._out(h, step - 1), AnytimeNetState(step, tuple(features))


anytimenet = variant(
    AnytimeNet,
    "anytimenet",
    "AnytimeNet of Kim et al. 2020: 7 steps, 24 residual blocks of width 16, 32, 64, 755,802 parameters for 10 classes.",
)
anytimenet_baseline = variant(
    AnytimeNet,
    "anytimenet_baseline",
    "BASELINE of Kim et al. 2020: the graph of AnytimeNet's last step, run at once; one answer, the same parameters.",
    fixed={"scheme": None, "statistics": "shared"},
)
