"""Norms in training: no weight decay, whatever their shape, and statistics that belong to the averaged weights."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import update_bn

from anytime import create_model, load
from anytime.training.build import build
from anytime.training.config import parse
from anytime.training.fit import fit
from anytime.training.module import decay_groups


def test_norms_and_biases_are_not_decayed():
    norms = [nn.LayerNorm((3, 4, 4)), nn.GroupNorm(1, 3), nn.BatchNorm2d(3), nn.RMSNorm((4, 4))]
    frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), *norms, frozen, nn.Linear(4, 4))
    decayed, rest = (group["params"] for group in decay_groups(model))
    assert [p.shape for p in decayed] == [model[0].weight.shape, model[-1].weight.shape]
    assert {id(p) for p in (*decayed, *rest)} == {id(p) for p in model.parameters() if p.requires_grad}
    assert decay_groups(model)[1]["weight_decay"] == 0


def test_norms_of_a_cascade_are_not_decayed():
    model = create_model("cascaded_resnet18", width=2, in_channels=1, num_steps=3)
    decayed = {id(p) for p in decay_groups(model)[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {name for name, p in model.named_parameters() if p.ndim > 1}
    assert not any("norm" in name for name in names)


@pytest.mark.filterwarnings("ignore:Swapping scheduler", "ignore:SWA is currently only supported every epoch")
def test_averaged_weights_are_saved_with_their_own_statistics(tiny, tmp_path: Path):
    """With one batch an epoch, statistics of the averaged weights do not depend on the order of the images."""
    flags = [*tiny, "--data.batch_size=96", "--data.augment=none", "--model=anytimenet"]
    job = build(parse(flags))
    parts = (job.model, job.data, job.objective, job.optimizer, job.schedule, job.settings, tmp_path)
    fit(*parts, callbacks=[StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)])
    model = load(tmp_path)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    update_bn(build(parse(flags)).data.train_dataloader(), model)
    again = model.state_dict()
    assert any("running_mean" in name for name in saved)
    for name, value in saved.items():
        torch.testing.assert_close(value, again[name], atol=1e-4, rtol=1e-3)
