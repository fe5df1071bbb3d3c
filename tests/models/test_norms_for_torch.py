"""Our batch norms are batch norms for torch's tools: recomputed statistics, averaged weights, freezing, what is an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from anytime import AnytimeModel, create_model
from anytime.models.common.step_norm import StepBatchNorm2d
from anytime.models.slicing.sliced import SliceBatchNorm2d

RESNET = {"backbone": "anytime.models.surgery.small_networks.ResNet20", "options": {"width": 2}, "num_steps": 3}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "anytimenet": ("anytimenet", {"blocks": (2, 1), "scheme": ((1, 1), (1, 0)), "width": 4}),
    "anytimenet shared": ("anytimenet", {"blocks": (2, 1), "scheme": ((1, 1), (1, 0)), "width": 4, "statistics": "shared"}),
    "cascaded": ("cascaded_resnet18", {"width": 2, "num_steps": 4}),
    "smoothed": ("cascaded_resnet18", {"width": 2, "num_steps": 4, "kernel": "ews", "statistics": "per_step"}),
    "serial": ("serial_resnet18", {"width": 2}),
    "serial published": ("serial_resnet18", {"width": 2, "form": "published"}),
    "densenet": ("cascaded_densenet", {"layers": (2, 1), "growth": 2}),
    "delayed": ("delayed", RESNET | {"statistics": "per_step"}),
    "delayed shared": ("delayed", RESNET | {"statistics": "shared"}),
    "iresnext": ("iresnext", {"blocks": (1,), "width": 4, "steps": 2, "cardinality": 2, "bottleneck": 1}),
    "iresnext shared": (
        "iresnext",
        {"blocks": (1,), "width": 4, "steps": 2, "cardinality": 2, "bottleneck": 1, "batch_norm": "shared"},
    ),
    "isresnext": ("isresnext", {"blocks": (1,), "width": 4, "steps": 2, "cardinality": 2, "bottleneck": 1}),
}


def images(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def running(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name}


@pytest.fixture(params=SMALL)
def model(request: pytest.FixtureRequest) -> AnytimeModel:
    torch.manual_seed(0)
    name, arguments = SMALL[request.param]
    return create_model(name, **arguments).double()


def test_norms_without_running_statistics_use_those_of_the_batch(model: AnytimeModel) -> None:
    """As torch's batch norm does after `replace_all_batch_norm_modules_`, in train and in eval mode."""
    x = images(0)
    expected = copy.deepcopy(model).train()(x)
    torch.func.replace_all_batch_norm_modules_(model)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), expected, rtol=0, atol=1e-10)
    assert not running(model)


def test_update_bn_gives_the_mean_over_batches(model: AnytimeModel) -> None:
    """Two batches give the midpoint of the statistics of each by itself, whatever they were before."""
    a, b = images(0), images(1, 0.3)
    names = list(model.state_dict())
    found = []
    for batches in ([a], [b], [a, (b, torch.zeros(4))]):
        for buffer in (buffer for name, buffer in model.named_buffers() if "running_" in name):
            buffer.fill_(7)
        update_bn(batches, model)
        found.append(running(model))
    for name, both in found[2].items():
        assert not (both == 7).any(), name
        torch.testing.assert_close(both, (found[0][name] + found[1][name]) / 2, rtol=1e-9, atol=1e-11)
    assert all(norm.momentum == 0.1 for norm in model.modules() if isinstance(norm, _BatchNorm))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", [name for name in SMALL if "shared" not in name])
def test_recomputed_statistics_are_those_of_training(name: str) -> None:
    """With the statistics of one batch, evaluation gives what training gives, up to Bessel's correction of the variance."""
    torch.manual_seed(0)
    model = create_model(SMALL[name][0], **SMALL[name][1]).double()
    x = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        update_bn([x], model)
        trained, evaluated = model.train()(x), model.eval()(x)
    assert (trained - evaluated).abs().max() < 0.05 * trained.abs().max()


@pytest.mark.parametrize(("use", "size"), [(0, 3), (1, 5)])
def test_without_momentum_a_slice_is_torchs_mean(use: int, size: int) -> None:
    ours, theirs = SliceBatchNorm2d(8, [0, 3]).double(), nn.BatchNorm2d(size, momentum=None).double()
    ours.momentum = None
    for seed in range(3):
        x = torch.randn(4, size, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(ours(x, use), theirs(x), rtol=1e-12, atol=1e-12)
    part = slice(ours.starts[use], ours.starts[use] + size)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        wanted = getattr(theirs, name).expand(size)
        torch.testing.assert_close(getattr(ours, name)[part], wanted, rtol=1e-12, atol=1e-12)


NORMS: list[Callable[[], _BatchNorm]] = [lambda: StepBatchNorm2d(3, rows=2), lambda: SliceBatchNorm2d(3, [0, 0])]


@pytest.mark.parametrize("make", NORMS)
def test_a_frozen_norm_keeps_its_statistics(make: Callable[[], _BatchNorm]) -> None:
    """Lightning freezes norms by `track_running_stats`; the batch normalises then, as in torch's."""
    ours, theirs, x = make(), nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    for norm in (ours, theirs):
        BaseFinetuning.freeze(norm, train_bn=False)
    before = running(ours)
    torch.testing.assert_close(ours(x, 1), theirs(x))
    assert all(torch.equal(value, before[name]) for name, value in running(ours).items())
    assert not any(p.requires_grad for p in ours.parameters())
    assert not list(BaseFinetuning.filter_params(ours, train_bn=False))
    BaseFinetuning.make_trainable(ours)
    ours(x, 1)
    assert not torch.equal(running(ours)["running_mean"], before["running_mean"])
    if isinstance(ours, StepBatchNorm2d):
        ours.track_running_stats, before = False, running(ours)
        ours.over_time(x, [0], copies=3)
        assert all(torch.equal(value, before[name]) for name, value in running(ours).items())


@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_single_value_per_channel_says_what_to_do(make: Callable[[], _BatchNorm], momentum: float | None) -> None:
    norm = make()
    norm.momentum = momentum
    before = running(norm)
    with pytest.raises(ValueError, match=r"more than one value per channel, got \[1, 3, 1, 1\]: leave out a last batch"):
        norm(torch.rand(1, 3, 1, 1), 0)
    assert all(torch.equal(value, before[name]) for name, value in running(norm).items())
    norm(torch.rand(1, 3, 1, 2), 0)
    assert norm.eval()(torch.rand(1, 3, 1, 1), 0).isfinite().all()


@pytest.mark.parametrize("make", NORMS)
def test_a_norm_has_the_state_it_had(make: Callable[[], _BatchNorm]) -> None:
    norm = make()
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    make().load_state_dict(dict(norm.state_dict()))  # without torch's version numbers
    assert norm.num_features == 3
    assert isinstance(copy.deepcopy(norm), type(norm))


def test_what_torch_cannot_synchronise_is_an_error() -> None:
    for make in NORMS:
        with pytest.raises(ValueError, match=r"(Step|Slice)BatchNorm2d has separate statistics for each use, which SyncBatch"):
            nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Linear(2, 2), make()))


class Training(L.LightningModule):
    """Keeps a copy of the averaged network, which Lightning sets up before its last epoch recomputes the statistics."""

    def __init__(self, model: AnytimeModel) -> None:
        super().__init__()
        self.model = model

    def on_train_epoch_start(self) -> None:
        self.averaged = [copy.deepcopy(self.model)]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]).flatten(0, 1), batch[1].repeat(self.model.num_steps))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["anytimenet", "isresnext"])
def test_lightnings_weight_averaging_recomputes_the_statistics(name: str) -> None:
    torch.manual_seed(0)
    module = Training(create_model(SMALL[name][0], **SMALL[name][1]))
    batches = [(images(seed).float() * (1 + seed), torch.arange(4)) for seed in range(3)]
    averaging = StochasticWeightAveraging(0.02, swa_epoch_start=1, annealing_epochs=1)
    off: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(max_epochs=3, accelerator="cpu", callbacks=[averaging], **off).fit(module, DataLoader(batches, batch_size=None))
    (averaged,) = module.averaged
    update_bn(batches, averaged)
    for key, wanted in running(averaged).items():
        torch.testing.assert_close(running(module.model)[key], wanted, rtol=1e-4, atol=1e-5)
