"""Exits on a trained network
==========================

A trained network gets exits: only the heads are trained, so the network and its answer stay the same.

python examples/pretrained_to_anytime.py [--data cifar10] [--epochs 8]

First a plain ResNet-20 is trained with the library's trainer, as if it had come from elsewhere. Then exits are attached, and
their heads are trained on its features, which are computed once.
"""

import argparse
import functools
import tempfile
import time
from pathlib import Path

import torch

import anytime
from anytime.data import create_data
from anytime.objectives import Weighted
from anytime.reporting import plots
from anytime.training import HeadsOnly, OneCycle, Settings, fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="data set (default: digits, which needs no download)")
parser.add_argument("--epochs", type=int, default=5, help="epochs for the network, and for its heads (default: 5)")
parser.add_argument(
    "--out",
    type=Path,
    default=Path("runs/pretrained_to_anytime.png"),
    help="the figure (default: runs/pretrained_to_anytime.png)",
)
options = parser.parse_args()

# Any classifier, named by its import path so that a run can build it again.
NETWORK = "anytime.models.surgery.small_networks.ResNet20"
data = create_data(options.data, batch_size=128)
data.setup()
settings = Settings(epochs=options.epochs, channels_last=True, progress=False)
optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
objective = Weighted("constant")


def train(model: anytime.AnytimeModel, **more: HeadsOnly) -> anytime.Trace:
    """Trains into a folder that is thrown away; the answers to the test images."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, objective, optimizer, OneCycle(), settings, Path(folder), **more)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    data.setup("test")
    return anytime.record(model, data.test_dataloader(), input_size=data.input_size, progress=False)


plain = anytime.attach_exits(NETWORK, exits=1, num_classes=data.num_classes, input_size=data.input_size)
plain.set_normalization(data.mean, data.std)
before = train(plain)

model = anytime.attach_exits(NETWORK, exits=4, num_classes=data.num_classes, input_size=data.input_size)
model.backbone.load_state_dict(plain.backbone.state_dict())
model.set_normalization(data.mean, data.std)
after = train(model, regime=HeadsOnly())

right = (after.logits.argmax(2) == after.labels).double().mean(1)
print(f"plain network: {(before.logits[0].argmax(1) == before.labels).double().mean():.2%} for {before.macs[-1]:,} MACs")
for t, (place, share) in enumerate(zip([*model.exits, "the end"], right, strict=True)):
    print(f"answer {t + 1} after {place:<9} {share:.2%} for {after.macs[t]:,} MACs, {1e3 * after.seconds[t]:.2f} ms")

figure = plots.compare({"with exits": after, "plain network": before})
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"wrote {options.out}")

# sphinx_gallery_thumbnail_path = 'images/examples/pretrained_to_anytime.png'
