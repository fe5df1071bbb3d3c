"""A camera at 30 Hz on a busy machine
===================================

A control loop at 30 Hz on a loaded machine answers every frame; misses are counted, nothing is raised.

python examples/camera_loop.py [--seconds 10] [--load 2]

Frames come as a camera delivers them: 640x480, uint8, blue first. Other processes keep the cores busy, and after every tenth
frame the loop itself does something else for longer than a frame, so that the next deadline has passed when its turn comes.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from matplotlib.figure import Figure

import anytime

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=2.0, help="how long to run (default: 2)")
parser.add_argument("--load", type=int, default=2, help="busy processes besides this one (default: 2)")
parser.add_argument(
    "--out", type=Path, default=Path("runs/camera_loop.png"), help="the figure (default: runs/camera_loop.png)"
)
options = parser.parse_args()

PERIOD = 1 / 30
torch.set_num_threads(1)  # a second thread would wait for whichever core is taken away
model = anytime.load("anytimenet_cifar10")
# "p50": a step starts if it usually fits. The default, "p99", prefers an earlier answer to a late one.
predictor = anytime.Predictor(model, anytime.profile(model, 32, repeats=100), stop="confidence=0.99", quantile="p50")
camera = torch.randint(256, (8, 480, 640, 3), dtype=torch.uint8)  # stands for a camera's ring of buffers

busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.load)]
answers, answer, image = [], None, model.prepare(camera[0], bgr=True)
try:
    start = time.monotonic()
    for number in range(round(options.seconds / PERIOD)):
        tick, next_tick = start + number * PERIOD, start + (number + 1) * PERIOD
        time.sleep(max(0.0, tick - time.monotonic()))
        if time.monotonic() < next_tick:  # a frame whose time is over need not be looked at
            image = model.prepare(camera[number % len(camera)], bgr=True)
        answer = predictor(image, deadline=next_tick - time.monotonic(), prior=answer)  # the deadline may be negative
        answers.append(answer)
        if number % 10 == 9:
            time.sleep(2.5 * PERIOD)  # planning, logging, another sensor
finally:
    for process in busy:
        process.kill()
        process.wait()

steps = Counter(answer.step for answer in answers)
late = [answer.missed or answer.step == -1 for answer in answers]
print(f"{len(answers)} frames at 30 Hz beside {options.load} busy processes, every one answered, {sum(late)} not in time")
for step, frames in sorted(steps.items()):
    print(f"  {'the previous answer' if step == -1 else f'step {step} of {model.num_steps}'}: {frames} frames")

figure = Figure(figsize=(7, 2.8), layout="constrained")
axes = figure.add_subplot(xlabel="frame", ylabel="step of the answer", yticks=[-1, *range(1, model.num_steps + 1)])
axes.set_yticklabels(["previous answer", *map(str, range(1, model.num_steps + 1))])
for missed, label, look in ((False, "in time", "o"), (True, "not in time", "rx")):
    shown = [number for number in range(len(answers)) if late[number] == missed]
    axes.plot(shown, [answers[number].step for number in shown], look, label=label)
figure.legend(loc="outside upper right", ncols=2)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"wrote {options.out}")

# sphinx_gallery_thumbnail_path = 'images/examples/camera_loop.png'
