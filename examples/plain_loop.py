"""A plain training loop
=====================

A plain PyTorch training loop over an anytime model, without Lightning: any loop works, because the model is a module.

python examples/plain_loop.py [--epochs 3]
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import anytime
from anytime.analysis import curves
from anytime.reporting import plots

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=3, help="passes over the images (default: 3)")
parser.add_argument("--out", type=Path, default=Path("runs/plain_loop.png"), help="the figure (default: runs/plain_loop.png)")
options = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16  # [1797, 1, 8, 8] in [0, 1]
labels = torch.from_numpy(digits.target).long()
train = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=50, shuffle=True)
test = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=100)

model = anytime.create_model("anytimenet", num_classes=10, in_channels=1, blocks=(3, 3, 3), scheme=(1, 2), width=8)
model.set_normalization(images[:1400].mean((0, 2, 3)).tolist(), images[:1400].std((0, 2, 3)).tolist())
objective = anytime.objectives.Weighted("inverse_square")  # any function of logits [T, B, K] and labels [B]
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=options.epochs * len(train))

for epoch in range(options.epochs):
    model.train()
    for x, y in train:
        optimizer.zero_grad()
        loss = objective(model(x), y)  # model(x): the logits of all answers
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

trace = anytime.record(model.eval(), test, progress=False)
for t, (macs, accuracy) in enumerate(zip(trace.macs.tolist(), curves.accuracy(trace).tolist(), strict=True), 1):
    print(f"step {t}: {macs / 1e6:.2f} M multiply-adds, accuracy {accuracy:.1%}")

figure = plots.steps(trace)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"wrote {options.out}")

# sphinx_gallery_thumbnail_path = 'images/examples/plain_loop.png'
