"""A cascaded network's time course
================================

All blocks of a cascaded network update at every step: its answer to one image over time.

python examples/time_course.py [--epochs 4]

The network is a small cascaded ResNet for handwritten digits, trained with TD (lambda = 0.5): each answer learns to predict
the later ones. With the same weights, a serial network runs one block after the other. Its last answer is the same.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import anytime
from anytime.analysis import curves
from anytime.objectives import TDLambda
from anytime.reporting.dynamics import time_course

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=4, help="passes over the images (default: 4)")
parser.add_argument(
    "--out", type=Path, default=Path("runs/time_course.png"), help="the figure (default: runs/time_course.png)"
)
options = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16  # [1797, 1, 8, 8] in [0, 1]
labels = torch.from_numpy(digits.target).long()

model = anytime.create_model("cascaded_resnet18", in_channels=1, width=8)
model.set_normalization(images[:1400].mean((0, 2, 3)).tolist(), images[:1400].std((0, 2, 3)).tolist())
objective = TDLambda(lam=0.5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
batches = [order for _ in range(options.epochs) for order in torch.randperm(1400).split(50)]
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=len(batches))
for chosen in batches:
    optimizer.zero_grad()
    objective(model(images[chosen]), labels[chosen]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
    optimizer.step()
    schedule.step()

test = [(images[1400:], labels[1400:])]
trace = anytime.record(model.eval(), test, progress=False)
serial = anytime.convert(model, "serial_resnet18")  # the same weights, one block after the other
serial_trace = anytime.record(serial, test, progress=False)
for t, (cascaded, one_by_one) in enumerate(zip(curves.accuracy(trace), curves.accuracy(serial_trace), strict=True)):
    print(f"t = {t}: cascaded {cascaded:.1%}, serial {one_by_one:.1%}")
print(f"largest difference of the last logits: {(trace.logits[-1] - serial_trace.logits[-1]).abs().max():.1e}")

probabilities = trace.logits.softmax(2)  # [T, N, K]
right = trace.logits.argmax(2) == trace.labels
slow = int(
    (~right).sum(0).where(right[-1], torch.tensor(-1)).argmax()
)  # of those answered right at last, the one longest wrong
title = f"the digit that takes longest: a {int(trace.labels[slow])}"
figure = time_course(
    probabilities[:, slow],
    [str(k) for k in range(10)],
    macs=trace.macs.tolist(),
    steps=list(range(model.num_steps)),
    title=title,
)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"wrote {options.out}")

# sphinx_gallery_thumbnail_path = 'images/examples/time_course.png'
