"""What the runtime adds to the steps it runs, at batch 1: time per step, to start a session, and to import it.

    python benchmarks/overhead.py [--repeats 200] [--out results/benchmarks/overhead.json]

The model's 64 steps only return precomputed logits, of 10 and of 1,000 classes. Per step: a call without and with a deadline,
with the last answer, the product of experts and a stopping rule, minus the bare loop over the steps in the same turn; and a
background session while another thread reads `best()` every 100 microseconds. To start a session: until it is returned, and
until its first step begins. To prepare a 640x480 frame for 224x224 pixels on one thread, and PIL's own resize of it. Import: a
new process that imports only torch, and one that imports `anytime.runtime`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from PIL import Image
from torch import Tensor

import anytime
from anytime import Predictor
from anytime.model import AnytimeModel
from anytime.stopping import Confidence

STEPS = 64
PER_STEP, START, PREPARE = 20e-6, 200e-6, 2e-3  # bars, in seconds


class Nothing(AnytimeModel):
    """64 steps that cost nothing; `began` holds the times at which runs started."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.num_steps = STEPS
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.logits = torch.randn(STEPS, 1, num_classes)
        self.began: list[float] = []

    def initial_state(self, x: Tensor) -> int:
        self.began.append(time.perf_counter())
        return 0

    def step(self, state: int) -> tuple[Tensor, int]:
        return self.logits[state], state + 1


def polled(predictor: Predictor, x: Tensor) -> Callable[[], None]:
    """A whole session while another thread reads its best answer."""

    def run() -> None:
        with predictor.session(x) as session:
            stop = threading.Event()

            def poll() -> None:
                while not stop.is_set():
                    session.best()
                    time.sleep(100e-6)

            reader = threading.Thread(target=poll)
            reader.start()
            session.wait()
            stop.set()
            reader.join()

    return run


def per_step(classes: int, repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds per step beyond the bare loop: median, 10th and 90th percentile."""
    model, x = Nothing(classes).eval(), torch.rand(1, 3, 8, 8)
    measured = anytime.profile(model, (3, 8, 8), repeats=20)

    def bare() -> None:
        with torch.inference_mode():
            state = model.initial_state(x)
            for _ in range(STEPS):
                _, state = model.step(state)

    plain, timed = Predictor(model), Predictor(model, measured)
    product, rule = Predictor(model, measured, "product"), Predictor(model, measured, stop=Confidence(1.0))
    functions: dict[str, Callable[[], Any]] = {
        "bare": bare, "last answer": lambda: plain(x), "deadline": lambda: timed(x, 10.0),
        "product": lambda: product(x, 10.0), "rule": lambda: rule(x, 10.0), "session, polled": polled(timed, x),
    }  # fmt: skip
    seconds = harness.time_in_turns(functions, repeats)
    overhead = {}
    for name in functions.keys() - {"bare"}:
        extra = [(a - b) / STEPS * 1e6 for a, b in zip(seconds[name], seconds["bare"], strict=True)]
        deciles = statistics.quantiles(extra, n=10)
        overhead[name] = {"median": statistics.median(extra), "p10": deciles[0], "p90": deciles[-1]}
    return {name: overhead[name] for name in functions if name in overhead}


def session_start(repeats: int) -> dict[str, float]:
    """Median microseconds until a session is returned, and until its first step begins."""
    model, x = Nothing().eval(), torch.rand(1, 3, 8, 8)
    predictor, returned, began = Predictor(model), [], []
    for _ in range(repeats):
        start = time.perf_counter()
        session = predictor.session(x)
        returned.append(time.perf_counter() - start)
        session.close()
        began.append(model.began[-1] - start)
    return {"returned": statistics.median(returned) * 1e6, "first_step": statistics.median(began) * 1e6}


def prepare(repeats: int) -> dict[str, float]:
    """Milliseconds to prepare a frame, and for PIL to resize it: medians of alternating runs on one thread."""
    model = Nothing()
    model.info.input_size, model.info.resize_ratio = (3, 224, 224), 8 / 7
    frame = torch.randint(256, (480, 640, 3), dtype=torch.uint8).numpy()
    image, threads = Image.fromarray(frame), torch.get_num_threads()
    functions: dict[str, Callable[[], Any]] = {
        "rgb": lambda: model.prepare(frame),
        "bgr": lambda: model.prepare(frame, bgr=True),
        "pil_resize": lambda: image.resize((341, 256), Image.Resampling.BILINEAR),
    }
    torch.set_num_threads(1)
    seconds = harness.time_in_turns(functions, repeats)
    torch.set_num_threads(threads)
    return {name: statistics.median(each) * 1e3 for name, each in seconds.items()}


def import_seconds(module: str) -> float:
    """Seconds of a new process that imports a module, the minimum of five."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - start

    return min(once() for _ in range(5))


def main() -> None:
    """Prints the numbers and writes them as JSON."""
    options = harness.parser(__doc__ or "").parse_args()
    steps = {classes: per_step(classes, options.repeats) for classes in (10, 1000)}
    for classes, overhead in steps.items():
        text = ", ".join(
            f"{name} {each['median']:.1f} [{each['p10']:.1f}, {each['p90']:.1f}]" for name, each in overhead.items()
        )
        print(f"microseconds per step, {classes} classes (bar {PER_STEP * 1e6:.0f}): {text}", flush=True)
    start = session_start(options.repeats)
    print(
        f"a session is returned after {start['returned']:.0f} microseconds, its first step begins after "
        f"{start['first_step']:.0f} (bar {START * 1e6:.0f})"
    )
    frames = prepare(options.repeats)
    print(
        f"milliseconds to prepare a frame (bar {PREPARE * 1e3:.0f}): " + ", ".join(f"{k} {v:.2f}" for k, v in frames.items())
    )
    imports = {module: import_seconds(module) for module in ("torch", "anytime.runtime")}
    print(", ".join(f"import {module} {seconds:.2f} s" for module, seconds in imports.items()))
    facts = {"steps": steps, "session_microseconds": start, "prepare_milliseconds": frames}
    facts |= {"import_seconds": imports, "repeats": options.repeats}
    harness.write(options.out, facts | harness.environment("cpu"))


if __name__ == "__main__":
    main()
