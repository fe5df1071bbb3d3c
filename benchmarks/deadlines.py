"""Requests under deadlines on the real clock, with CIFAR-10 test images at batch 1.

    python benchmarks/deadlines.py [--requests 2000] [--load] [--out results/benchmarks/deadlines.json]
    python benchmarks/deadlines.py --network RUN --plain RUN --separate RUN:STEP RUN:STEP RUN:STEP

For each deadline of a sweep, every request is one image. A request is a miss if its answer comes after the deadline or is only
the prior; a miss counts as wrong. Overshoot is how long after the deadline the answer came.

* interruptible: `Predictor` on the anytime network; contract: the same, but it computes only the deepest answer that fits.
* plain: one answer that cannot be stopped (default: only the last answer of the same network).
* separate: networks trained for one answer each; RUN, or RUN:STEP for one answer of a network with several. With a known
  deadline, the largest network whose quantile fits runs.
* With an unknown deadline: the area under accuracy over deadlines (uniform over the sweep, exact from the arrival times of
  answers), of the stream's best answer so far, of each separate network, and of all of them one after the other.

`--load` keeps one core busy meanwhile; `--quantile` is the quantile of a step's time that must fit.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import harness
import torch
from torch import Tensor

import anytime
from anytime.data import create_data
from anytime.runtime import Predictor, Profile, profile
from anytime.runtime.profile import Latency
from anytime.support.allocator import keep_freed_memory

SIZE = (3, 32, 32)
BAR = 0.005  # miss rate, idle, for every deadline above the first step's p99
Request = list[tuple[float, bool]]  # seconds from the call and correctness of each answer


class Single(NamedTuple):
    """A network used for a single answer."""

    name: str
    model: anytime.AnytimeModel
    step: int

    def serve(self, image: Tensor, label: int) -> tuple[float, bool]:
        """Seconds and correctness of its answer."""
        start = time.monotonic()
        answer = int(self.model(image, step=self.step).argmax())
        return time.monotonic() - start, answer == label


def burn(stop: Any) -> None:
    """Keeps one core busy."""
    while not stop.is_set():
        sum(range(10_000))


def single(text: str) -> Single:
    """The network named by RUN or RUN:STEP."""
    name, _, step = text.rpartition(":") if text.rpartition(":")[2].isdigit() else (text, "", "")
    model = anytime.load(name).eval()
    return Single(f"{Path(name).name}:{step}" if step else Path(name).name, model, int(step or model.num_steps))


def serve(predictor: Predictor, images: Tensor, labels: Tensor, deadline: float, contract: bool) -> dict[str, Any]:
    """Answers every image under the deadline, one after the other."""
    return serve_in_turn({"": predictor}, images, labels, deadline, contract)[""]


def serve_in_turn(
    predictors: Mapping[str, Predictor], images: Tensor, labels: Tensor, deadline: float, contract: bool = False
) -> dict[str, dict[str, Any]]:
    """Each predictor answers an image under the deadline before any gets the next image."""
    answers: dict[str, list[tuple[int, float, bool, bool]]] = {name: [] for name in predictors}
    for image, label in zip(images.split(1), labels.tolist(), strict=True):
        for name, predictor in predictors.items():
            answer = predictor(image, deadline, contract=contract)
            missed = answer.missed or answer.step < 1
            right = not missed and int(answer.label) == label
            answers[name].append((answer.step, max(answer.elapsed - deadline, 0.0), missed, right))
    return {name: _summary(*zip(*rows, strict=True)) for name, rows in answers.items()}


def _summary(
    steps: Sequence[int], overshoot: Sequence[float], missed: Sequence[bool], right: Sequence[bool]
) -> dict[str, Any]:
    ranked = sorted(overshoot)
    return {
        "miss_rate": statistics.mean(missed), "accuracy": statistics.mean(right), "mean_step": statistics.mean(steps),
        "overshoot_p50": ranked[len(ranked) // 2], "overshoot_p99": ranked[int(0.99 * len(ranked))],
        "overshoot_max": ranked[-1],
    }  # fmt: skip


def streamed(predictor: Predictor, images: Tensor, labels: Tensor) -> list[Request]:
    """Arrival time and correctness of each answer of the stream."""
    requests = []
    for image, label in zip(images.split(1), labels.tolist(), strict=True):
        requests.append([(answer.elapsed, int(answer.label) == label) for answer in predictor.stream(image)])
    return requests


def answers_of(network: Single, images: Tensor, labels: Tensor) -> list[Request]:
    """The same for a network with one answer."""
    with torch.inference_mode():
        for image in images[:20].split(1):
            network.serve(image, 0)
        return [[network.serve(image, label)] for image, label in zip(images.split(1), labels.tolist(), strict=True)]


def in_sequence(networks: Sequence[list[Request]]) -> list[Request]:
    """Networks that run one after the other on each image: the best that separate ones can do without a known deadline."""
    requests = []
    for answers in zip(*networks, strict=True):
        at, request = 0.0, []
        for ((seconds, right),) in answers:
            at += seconds
            request.append((at, right))
        requests.append(request)
    return requests


def met(requests: Sequence[Request], deadline: float) -> tuple[float, float]:
    """Miss rate and accuracy if the latest answer before the deadline counts and the deadline was unknown."""
    latest = [[right for seconds, right in request if seconds <= deadline][-1:] for request in requests]
    return sum(not each for each in latest) / len(latest), sum(each == [True] for each in latest) / len(latest)


def area(requests: Sequence[Request], shortest: float, longest: float) -> float:
    """E[accuracy(D)] for D uniform in shortest..longest, exact."""
    total = 0.0
    for request in requests:
        edges = [min(max(seconds, shortest), longest) for seconds, _ in request] + [longest]
        total += sum(right * (end - start) for (_, right), (start, end) in zip(request, pairwise(edges), strict=True))
    return total / len(requests) / (longest - shortest)


def sweep(measured: Profile, points: int = 10) -> list[float]:
    """Deadlines from 1.1 times the first step's p99 to 1.5 times the whole stream's, evenly spaced in their logarithm."""
    batch = measured.at(1)
    low, high = 1.1 * batch.steps[0].p99, 1.5 * batch.reached[-1].p99
    return [low * (high / low) ** (k / (points - 1)) for k in range(points)]


def main() -> None:
    """Prints a line per deadline and writes all as JSON."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--requests", type=int, default=2000, help="requests per deadline")
    parser.add_argument("--load", action="store_true", help="keep one core busy")
    parser.add_argument("--quantile", default="p99", help="quantile of a step's seconds that must fit")
    parser.add_argument("--network", default="anytimenet_cifar10", help="the anytime network, a name or run directory")
    parser.add_argument("--plain", help="a network with one answer, RUN or RUN:STEP")
    parser.add_argument("--separate", nargs="+", default=[], help="separately trained networks, small to large")
    options = parser.parse_args()
    keep_freed_memory()
    model = anytime.load(options.network)
    plain = single(options.plain) if options.plain else Single("only the last answer", model.eval(), model.num_steps)
    alone = [single(name) for name in options.separate]
    data = create_data("cifar10")
    data.setup("test")
    images, labels = (torch.cat(parts)[: options.requests] for parts in zip(*data.test_dataloader(), strict=True))
    measured = profile(model, SIZE, repeats=1000)
    stop = multiprocessing.Event()
    burner = multiprocessing.Process(target=burn, args=(stop,), daemon=True)
    if options.load:
        burner.start()
    predictor = Predictor(model, measured, quantile=options.quantile)
    stream = streamed(predictor, images, labels)
    once = answers_of(plain, images, labels)
    separate = {network.name: answers_of(network, images, labels) for network in alone}
    fits = {name: Latency.of([request[0][0] for request in each]).at(options.quantile) for name, each in separate.items()}
    rows = []
    for deadline in sweep(measured):
        row: dict[str, Any] = {"deadline": deadline, "interruptible": serve(predictor, images, labels, deadline, False)}
        row["contract"] = serve(predictor, images, labels, deadline, True)
        row["plain"] = dict(zip(("miss_rate", "accuracy"), met(once, deadline), strict=True))
        if fitting := [name for name, seconds in fits.items() if seconds <= deadline]:
            row["separate"] = dict(zip(("miss_rate", "accuracy"), met(separate[fitting[-1]], deadline), strict=True))
            row["separate"]["network"] = fitting[-1]
        rows.append(row)
        own = row["interruptible"]
        print(
            f"deadline {1e3 * deadline:6.2f} ms  misses {own['miss_rate']:6.2%} (bar {BAR:.1%})  accuracy "
            f"{own['accuracy']:6.2%} at mean step {own['mean_step']:.2f}  overshoot max {1e3 * own['overshoot_max']:.2f} ms   "
            + "   ".join(
                f"{key}: {row[key]['accuracy']:6.2%}, misses {row[key]['miss_rate']:6.2%}"
                for key in ("contract", "plain", "separate")
                if key in row
            ),
            flush=True,
        )
    stop.set()
    low, high = rows[0]["deadline"], rows[-1]["deadline"]
    rivals = {plain.name: once, **separate}
    if separate:
        rivals["one after the other"] = in_sequence([*separate.values()])
    areas = {"stream": area(stream, low, high)} | {name: area(each, low, high) for name, each in rivals.items()}
    print("area under accuracy, deadline unknown: " + ", ".join(f"{name} {value:.2%}" for name, value in areas.items()))
    longest = max(step.p999 for step in measured.at(1).steps)
    print(f"longest step's p99.9: {1e3 * longest:.2f} ms")
    facts = {
        "network": Path(options.network).name, "plain": plain.name, "separate": fits, "areas": areas,
        "requests": options.requests, "load": options.load, "quantile": options.quantile, "longest_step_p999": longest,
        "dataset": "CIFAR10 test",
    }  # fmt: skip
    harness.write(options.out, {"rows": rows, **facts, **harness.environment("cpu")})


if __name__ == "__main__":
    main()
