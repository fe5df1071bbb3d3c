"""How long each step takes on this machine, including the slow tail: the basis for planning deadlines."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from anytime.combine import Last
from anytime.cost import hardware, step_macs
from anytime.model import AnytimeModel, Deployed
from anytime.runtime.alone import read_newest
from anytime.runtime.answer import PRIOR, Answer
from anytime.runtime.engines.exported import engine_of
from anytime.runtime.engines.pytorch import CompiledSteps, EagerSteps, require_steps
from anytime.runtime.execution import EagerExecution, Reader
from anytime.runtime.gathered import Gathered
from anytime.runtime.interrupts import LEAST_RESERVE, OPERATOR, STEP, cancels_steps
from anytime.runtime.transfer import send
from anytime.support.documents import parse_json, read_limited
from anytime.support.files import atomic_write
from anytime.support.folders import check_ordinary
from anytime.support.units import ImageSize, guard_seconds, image_size

FORMAT = 1
_OPERATOR_RUNS = 200  # at most, because an engine notes every operator of each
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


def check_quantile(quantile: Any) -> None:
    """Raises ValueError unless it is a name in `QUANTILES`."""
    if not isinstance(quantile, str) or quantile not in QUANTILES:
        raise ValueError(f"quantile must be one of {', '.join(QUANTILES)}, got {quantile!r}")


class Latency(NamedTuple):
    """Quantiles and maximum of `n` measured seconds; a quantile is the smallest measured value not below it."""

    n: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The quantiles of measured seconds."""
        ranked = sorted(seconds)
        return cls(len(ranked), *(ranked[max(math.ceil(q * len(ranked)) - 1, 0)] for q in QUANTILES.values()))

    def at(self, quantile: str) -> float:
        """Seconds at a quantile named in `QUANTILES`."""
        check_quantile(quantile)
        return getattr(self, quantile)


@dataclass(frozen=True)
class BatchProfile:
    """Latencies at one batch size.

    Attributes:
        steps: Each step of the stream by itself, length T.
        reached: From the start of the stream to answer t, length T (not the sum of quantiles).
        contract: Computing only answer t, length T; empty if not measured.
        operators: The longest operator of each step, after which a cancelled step ends, length T; measured in a run of its
            own, with the engine's profiling. Empty where the engine cannot cancel a step.
        memory: The most bytes that each step has in use, weights included, length T; empty if unknown.
    """

    steps: tuple[Latency, ...]
    reached: tuple[Latency, ...]
    contract: tuple[Latency, ...] = ()
    operators: tuple[Latency, ...] = ()
    memory: tuple[int, ...] = ()


def architecture(model: AnytimeModel) -> str:
    """A digest of what a model computes, independent of its weights: class, arguments, steps, names and shapes of tensors."""
    shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    text = json.dumps([type(model).__qualname__, model.num_steps, model.config.get("arguments"), shapes], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(model: AnytimeModel, compiled: bool = False) -> dict[str, Any]:
    """What latencies depend on besides the input: hardware, cores, threads, versions, precision, compilation, engine."""
    reference = next(model.parameters())
    known = {
        "hardware": hardware(reference.device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(reference.dtype).removeprefix("torch."),
        "compiled": compiled,
    }
    return known | dict(model.deployment) if isinstance(model, Deployed) else known


@dataclass(frozen=True)
class Profile:
    """Latencies of a model's steps on one machine, by batch size.

    Attributes:
        model: Digest of the architecture (see `architecture`).
        input_size: (channels, height, width).
        fingerprint: Where and how it was measured (see `fingerprint`).
        batches: Latencies by batch size.
        macs: Cumulative MACs of the stream per image, length T.
        contract_macs: MACs of computing only answer t, length T.
        interrupt: What a deadline can end in this engine: "operator" or "step" (see `Predictor`).
    """

    model: str
    input_size: tuple[int, int, int]
    fingerprint: dict[str, Any]
    batches: dict[int, BatchProfile]
    macs: tuple[int, ...]
    contract_macs: tuple[int, ...]
    interrupt: str = STEP

    def at(self, batch_size: int) -> BatchProfile:
        """The latencies of the smallest measured batch size >= `batch_size`; raises ValueError if all are smaller."""
        fitting = [size for size in self.batches if size >= batch_size]
        if not fitting:
            raise ValueError(f"the profile knows batches up to {max(self.batches)}, got {batch_size}; profile larger ones")
        return self.batches[min(fitting)]

    def shortest_deadlines(
        self, batch_size: int = 1, quantile: str = "p99", guard: float | str | Tensor = 0.0, interrupt: str | None = None
    ) -> list[float]:
        """d_t, the shortest deadline under which `Predictor` gives answer t, if steps take their median time.

        Step s must have started and ended, for each s up to t: d_t = max over s <= t of e_s. With `interrupt="step"` it starts
        only if it fits, and otherwise ("operator") it may also be risked:

            e_s = (median seconds until answer s - 1) + (quantile of step s) + guard,
            e_s = min(that, (median seconds until answer s) + r_s),    r_1 = guard,    r_s = max(guard, 0.2 ms).

        Args:
            batch_size: Images per request.
            quantile: The quantile of the profile that must fit.
            guard: Time to keep free before the deadline, as `Predictor` takes it.
            interrupt: "operator" or "step", as `Predictor` takes it; None: "step", as a risked step is no promise.

        Returns:
            T numbers of seconds, non-decreasing.

        Raises:
            ValueError: The profile knows only smaller batches, the quantile is unknown, or the engine cannot cancel a step.
        """
        check_quantile(quantile)
        latencies, kept = self.at(batch_size), guard_seconds(guard)
        medians = [answer.p50 for answer in latencies.reached]
        pairs = zip([0.0, *medians[:-1]], latencies.steps, strict=True)
        needed = [before + step.at(quantile) + kept for before, step in pairs]
        if cancels_steps(STEP if interrupt is None else interrupt, self.interrupt == OPERATOR):
            risked = [median + max(kept, LEAST_RESERVE if t else 0.0) for t, median in enumerate(medians)]
            needed = [*map(min, needed, risked)]
        return [*accumulate(needed, max)]

    def check(self, model: AnytimeModel, compiled: bool = False, foreign: bool = False) -> None:
        """Raises ValueError if its values are damaged, or model, way of running or (unless `foreign`) hardware, ... differ."""
        if fault := _fault(self):
            raise ValueError(f"the profile is damaged: {fault}; measure again")
        if self.model != architecture(model):
            raise ValueError(f"the profile is of another model (architecture {self.model}, this one is {architecture(model)})")
        if len(self.macs) != model.num_steps:
            raise ValueError(f"the profile is of {len(self.macs)} steps, the model has {model.num_steps}; measure again")
        if self.fingerprint.get("compiled") != compiled:
            kind = "compiled" if compiled else "eager"
            raise ValueError(
                f"the profile is not of {kind} steps, which this predictor runs (compile={compiled}): measure them, "
                f"anytime.profile(model, example, compile={compiled}), or give Predictor compile={not compiled}"
            )
        here = fingerprint(model, compiled)
        pairs = [(key, self.fingerprint.get(key), value) for key, value in here.items()]
        differing = "; ".join(f"{key} {there!r}, here {value!r}" for key, there, value in pairs if there != value)
        if differing and not foreign:
            raise ValueError(f"the profile was measured elsewhere ({differing}); measure again, or pass foreign=True")

    def save(self, path: str | os.PathLike[str], replace: bool = True) -> None:
        """Writes a JSON file, atomically; without `replace`, raises ValueError if something is there."""
        with atomic_write(path, replace) as part:
            part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or of another version, or entries are missing, negative or NaN; the message says
                which.
        """
        check_ordinary(path)
        try:
            data = parse_json(read_limited(Path(path), 2**24), path)
            if data.pop("format") != FORMAT:
                raise ValueError(f"this version of anytime reads format {FORMAT}")
            batches = {
                int(size): BatchProfile(
                    memory=tuple(batch.pop("memory", ())),
                    **{key: tuple(Latency(*row) for row in rows) for key, rows in batch.items()},
                )
                for size, batch in data.pop("batches").items()
            }
            tuples: dict[str, Any] = {key: tuple(data.pop(key)) for key in ("input_size", "macs", "contract_macs")}
            made = cls(batches=batches, **tuples, **data)
            if fault := _fault(made):
                raise ValueError(fault)
            return made
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is not a profile of this version: {reason}") from error


def _fault(made: Profile) -> str | None:
    """What is wrong with the values of a profile: entries that are missing, negative, NaN, or not in order."""
    steps = len(made.macs)
    if not isinstance(made.model, str) or not isinstance(made.fingerprint, dict):
        return f"model must be text and fingerprint an object, got {made.model!r} and {made.fingerprint!r}"
    if len(made.input_size) != 3 or not all(type(size) is int and size > 0 for size in made.input_size):
        return f"input_size must be (channels, height, width), got {list(made.input_size)}"
    for name in ("macs", "contract_macs"):
        macs = getattr(made, name)
        if not steps or len(macs) != steps or not all(type(cost) is int and cost >= 0 for cost in macs):
            return f"{name} must be numbers of at least 0, one for each of {steps} steps, got {list(macs)}"
    if list(made.macs) != sorted(made.macs):
        return f"macs are cumulative and cannot fall, got {list(made.macs)}"
    if made.interrupt not in (OPERATOR, STEP):
        return f"interrupt must be {OPERATOR!r} or {STEP!r}, got {made.interrupt!r}"
    if not made.batches or not all(type(size) is int and size > 0 for size in made.batches):
        return f"batches must be by batch size, at least one, got {list(made.batches)}"
    for size, batch in made.batches.items():
        if len(batch.memory) not in (0, steps) or not all(type(used) is int and used >= 0 for used in batch.memory):
            return f"memory of batch size {size} must be bytes, one number for each of {steps} steps, got {list(batch.memory)}"
        for name in ("steps", "reached", "contract", "operators"):
            rows, where = getattr(batch, name), f"{name} of batch size {size}"
            if len(rows) != steps and (rows or name not in ("contract", "operators")):
                return f"{where} must have one row for each of {steps} steps, got {len(rows)}"
            for step, (n, *seconds) in enumerate(rows, 1):
                if (
                    type(n) is not int
                    or n < 1
                    or not all(type(value) in (int, float) and 0 <= value < math.inf for value in seconds)
                ):
                    return (
                        f"{where}, step {step}: seconds must be finite and at least 0, after their number, got {[n, *seconds]}"
                    )
                if seconds != sorted(seconds):
                    return f"{where}, step {step}: quantiles cannot fall, got {seconds}"
    return None


def profile(
    model: AnytimeModel,
    example: Tensor | ImageSize,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 200,
    warmup: int = 10,
    compile: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = False,
    contract: bool = True,
) -> Profile:
    """Measures every step of the stream and every contract answer, as a predictor runs them.

    Args:
        model: On its device and in its precision.
        example: Images `[B, C, H, W]`, their (channels, height, width), or the side of square colour images.
        batch_sizes: Batch sizes to measure.
        repeats: Streams per batch size; take 1,000 or more for a p99.9 that is not the maximum.
        warmup: Streams to run before the measurement.
        compile: Compiles each step first (some seconds each), as `Predictor(..., compile=True)` does; contract answers run
            uncompiled.
        clock: Returns seconds; replaced in tests.
        progress: Whether to show progress bars on stderr.
        contract: Whether to measure contract answers, which take most of the time; false if no call is `contract=True`.

    Raises:
        ValueError: If repeats or batch sizes are below 1.
        TypeError: If the model is no anytime model.
    """
    require_steps(model)
    size = image_size(tuple(example.shape[-3:]) if isinstance(example, Tensor) else example)
    if repeats < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"repeats and batch_sizes must be at least 1, got {repeats!r} and {batch_sizes!r}")
    reference = next(model.parameters())
    run = CompiledSteps(model, size, batch_sizes) if compile else engine_of(model)
    batches = {}
    with run.conditions():
        for batch_size in sorted(set(batch_sizes)):
            x = torch.rand(batch_size, *size, generator=torch.Generator().manual_seed(0)).to(reference)
            batches[batch_size] = _measure(run, x, repeats, warmup, clock, progress, contract)
    macs, contract_macs = (tuple(step_macs(run.model, size, alone, progress)) for alone in (False, True))
    interrupt = OPERATOR if run.cancels else STEP
    return Profile(architecture(model), size, fingerprint(model, compile), batches, macs, contract_macs, interrupt)


def _measure(
    run: EagerSteps, x: Tensor, repeats: int, warmup: int, clock: Callable[[], float], progress: bool, contract: bool
) -> BatchProfile:
    model = run.model

    def now() -> float:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return clock()

    measured: list[list[list[float]]] = [[[] for _ in range(model.num_steps)] for _ in range(3)]
    steps, reached, answers = measured
    compute = _contract(run, x) if contract else lambda step: None
    streams, title = range(warmup + repeats), f"profiling batches of {len(x)}"
    for repeat in tqdm(streams, desc=title, unit="stream", disable=not progress, leave=False):
        start = before = now()
        for t, _ in enumerate(_stream(run, x)):
            after = now()
            if repeat >= warmup:
                steps[t].append(after - before)
                reached[t].append(after - start)
            before = after
        for t, seconds in enumerate(answers if contract else ()):
            before = now()
            compute(t + 1)
            if repeat >= warmup:
                seconds.append(now() - before)
    operators = run.measure(x, min(repeats, _OPERATOR_RUNS))
    memory = tuple(operator.memory for operator in operators)
    longest = tuple(Latency.of(operator.seconds) for operator in operators)
    own, reach, alone = (tuple(map(Latency.of, filter(None, rows))) for rows in measured)
    return BatchProfile(own, reach, alone, longest, memory if all(memory) else ())


def _stream(run: EagerSteps, x: Tensor) -> Iterator[None]:
    """Runs the steps as a predictor does, each until its answer is on the host."""

    def no_prior() -> Answer:
        raise RuntimeError("no answer is gathered here")

    gathered = Gathered(no_prior, _levels(run), ())
    execution = EagerExecution(run, x, Last(), None, gathered, nullcontext)
    while not execution.done:
        send(execution.advance())
        yield


def _contract(run: EagerSteps, x: Tensor) -> Callable[[int], object]:
    """Computes contract answer 1..T as a predictor does, until it is on the host."""
    model, levels = run.model, _levels(run)
    first = model(x, step=1).float().cpu()
    unknown, steps = torch.full_like(first, torch.nan), torch.full((len(x),), PRIOR)
    nothing = Answer(unknown.split(list(levels), 1) if levels else (), steps, 0.0, None, steps, outputs=unknown)
    how = Last(), levels, model.num_steps, run.conditions, send, time.monotonic
    return lambda step: read_newest([Reader(step, lambda: model(x, step=step))], nothing, *how)


def _levels(run: EagerSteps) -> tuple[int, ...]:
    return run.model.levels if run.model.info.task == "classification" else ()
