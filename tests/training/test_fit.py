import csv
import importlib.util
import json
import shutil
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anytime import attach_exits, create_model, load
from anytime.training import NonFiniteLoss, Settings, fit
from anytime.training.build import build
from anytime.training.callbacks import Interrupted
from anytime.training.checkpoints import read_checkpoint
from anytime.training.config import parse
from anytime.training.fit import hardware_arguments
from anytime.training.logs import loggers
from anytime.training.module import compile_blocks

STEPS, STEPS_PER_EPOCH = 9, 3


def trained(flags: list[str], run: Path, resume: bool = False, **more) -> L.Trainer:
    job = build(parse(flags))
    return fit(job.model, job.data, job.objective, job.optimizer, job.schedule, job.settings, run, resume=resume, **more)


def assert_same(run: Path, other: Path) -> None:
    left, right = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics/metrics.csv").open() as file:
        return list(csv.DictReader(file))


class Copies(L.Callback):
    """Copies the run directory at many moments: the state that a kill -9 at that moment would leave."""

    def __init__(self, run: Path, to: Path) -> None:
        self.run, self.to = run, to

    def _copy(self, trainer, moment: str) -> None:
        shutil.copytree(self.run, self.to / f"{trainer.global_step}-{moment}")

    def on_train_start(self, trainer, *_):
        self._copy(trainer, "train_start")

    def on_train_batch_end(self, trainer, *_):
        self._copy(trainer, "batch_end")

    def on_validation_end(self, trainer, *_):
        self._copy(trainer, "validation_end")

    def on_train_epoch_end(self, trainer, *_):
        self._copy(trainer, "epoch_end")

    def on_train_end(self, trainer, *_):
        self._copy(trainer, "train_end")


@pytest.fixture
def flags(tiny: list[str], own_net: str) -> list[str]:
    """A model with dropout, so that random states must be restored, and augmentation."""
    rest = [flag for flag in tiny if not flag.startswith("--model")]
    return [f"--model={own_net}", "--model.dropout=0.2", *rest]


def test_interrupted_at_any_step_and_resumed_the_weights_are_the_same(flags, tmp_path, interrupt):
    trained(flags, tmp_path / "whole")
    for step in range(1, STEPS):
        run = tmp_path / f"interrupted{step}"
        with pytest.raises(Interrupted):
            trained(flags, run, callbacks=[interrupt(step)])
        checkpoint = read_checkpoint(run / "checkpoints/last.ckpt")
        assert checkpoint["global_step"] == step
        assert not (run / "model.safetensors").exists()
        assert trained(flags, run, resume=True).global_step == STEPS
        assert_same(run, tmp_path / "whole")
        assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(tmp_path / "whole")], step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_killed_at_any_moment_and_resumed_the_weights_are_the_same(tiny, tmp_path):
    trained(tiny, tmp_path / "whole", callbacks=[Copies(tmp_path / "whole", tmp_path / "killed")])
    copies = sorted((tmp_path / "killed").iterdir())
    assert len(copies) == 1 + STEPS + 3 * 2 + 1
    for run in copies:
        trained(tiny, run, resume=(run / "checkpoints/last.ckpt").exists())
        assert_same(run, tmp_path / "whole")
        assert [float(r["val/accuracy"]) for r in rows(run) if r["val/accuracy"]] == [
            float(r["val/accuracy"]) for r in rows(tmp_path / "whole") if r["val/accuracy"]
        ]


def test_interrupted_in_the_last_step_training_completes(flags, tmp_path, interrupt):
    assert trained(flags, tmp_path, callbacks=[interrupt(STEPS)]).global_step == STEPS
    assert (tmp_path / "model.safetensors").is_file()


def test_interrupted_twice(flags, tmp_path, interrupt):
    trained(flags, tmp_path / "whole")
    for step, resume in ((2, False), (5, True)):
        with pytest.raises(Interrupted):
            trained(flags, tmp_path / "run", resume=resume, callbacks=[interrupt(step)])
    trained(flags, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_checkpoint_holds_no_pickled_code_and_knows_the_position_of_the_loader(tiny, tmp_path, interrupt):
    with pytest.raises(Interrupted):
        trained(tiny, tmp_path, callbacks=[interrupt(5)])
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"epoch": 1, "batch": 2}]
    assert not list(tmp_path.rglob("*.part"))


def test_resume_without_or_with_a_damaged_checkpoint(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        trained(tiny, tmp_path, resume=True)
    trained(tiny, tmp_path)
    path = tmp_path / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        trained(tiny, tmp_path, resume=True)


def test_seed_decides_the_weights(tiny, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained([*tiny, "--seed", str(seed)], tmp_path / name)
    assert_same(tmp_path / "a", tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "c"))
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("conv.weight"))


@pytest.mark.parametrize(
    "option",
    ["--precision bf16-mixed", "--precision 64-true", "--precision bf16-true", "--channels_last true", "--gradient_clip 0.1"],
)
def test_options_of_the_training_leave_a_float32_model(tiny, tmp_path, option):
    trained([*tiny, "--epochs", "1", *option.split()], tmp_path)
    model = load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(torch.rand(2, 1, 8, 8)).isfinite().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by the compiler, of a block's input
@pytest.mark.parametrize("how", ["true", "blocks"])
def test_compiled(tiny, tmp_path, how):
    trained([*tiny, "--compile", how], tmp_path)
    assert load(tmp_path)(torch.rand(2, 1, 8, 8)).shape == (2, 2, 10)


def test_blocks_to_compile(monkeypatch):
    """Compiles the blocks in lists, but neither their layers nor single layers."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    model = create_model("iresnext", blocks=(1, 2), width=4, steps=2, cardinality=2, bottleneck=1)
    compile_blocks(model)
    assert compiled == list(model.blocks)
    compiled.clear()
    compile_blocks(torch.nn.Sequential(torch.nn.Sequential(model), torch.nn.ReLU()))
    assert compiled == [model]
    with pytest.raises(ValueError, match="Linear has no list of blocks to compile"):
        compile_blocks(torch.nn.Linear(2, 2))


def test_metrics_are_written_to_csv_always_and_to_tensorboard_if_installed(tiny, tmp_path):
    trained(tiny, tmp_path)
    accuracies = [row["val/accuracy_2"] for row in rows(tmp_path) if row["val/accuracy_2"]]
    assert len(accuracies) == 3
    assert all(0 <= float(accuracy) <= 1 for accuracy in accuracies)
    installed = importlib.util.find_spec("tensorboard") is not None
    assert (tmp_path / "tensorboard").exists() == installed


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_not_installed_is_an_error(monkeypatch, tmp_path, name):
    monkeypatch.setattr("anytime.training.logs.find_spec", lambda package: None)
    with pytest.raises(
        ValueError, match=f"logger={name} needs the package {name}, which is not installed: pip install {name}"
    ):
        Settings(logger=name)
    assert Settings(logger="csv").logger == "csv"
    assert [type(logger).__name__ for logger in loggers(tmp_path, 0)] == ["CSVLogger"]


def test_the_logger_is_the_one_that_was_chosen(monkeypatch, tmp_path):
    class Told:
        def __init__(self, *where, **how):
            self.how = how

    monkeypatch.setattr("anytime.training.logs.find_spec", lambda package: package)
    monkeypatch.setattr("anytime.training.logs.TensorBoardLogger", Told)
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", Told)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert len(loggers(tmp_path, 0, "csv")) == 1
    assert loggers(tmp_path, 7, "tensorboard")[1].how["purge_step"] == loggers(tmp_path, 7)[1].how["purge_step"] == 7
    assert loggers(tmp_path / "mine" / "replacement", 0, "wandb")[1].how == {"name": "mine", "project": "mine"}
    monkeypatch.delenv("WANDB_PROJECT")
    assert loggers(tmp_path / "run", 0, "wandb")[1].how == {"name": "run", "project": "anytime"}


def test_half_written_line_of_a_killed_run_is_ignored(tiny, tmp_path, interrupt):
    with pytest.raises(Interrupted):
        trained(tiny, tmp_path, callbacks=[interrupt(5)])
    with (tmp_path / "metrics/metrics.csv").open("a") as file:
        file.write("0.5,nonsen")
    trained(tiny, tmp_path, resume=True)
    assert [row["epoch"] for row in rows(tmp_path) if row["val/loss"]] == ["0.0", "1", "2"]


def test_nan_stops_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 5:
                next(module.parameters()).data.fill_(float("nan"))

    with pytest.raises(NonFiniteLoss, match=r"the loss is nan at step 5 \(epoch 2 of 3\)"):
        trained(tiny, tmp_path, callbacks=[Spoil()])
    checkpoint = read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def test_weights_spoiled_by_the_last_step_of_an_epoch_are_not_saved(tiny, tmp_path):
    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 6:
                next(module.parameters()).data.fill_(float("inf"))

    with pytest.raises(NonFiniteLoss, match="not finite after step 6"):
        trained(tiny, tmp_path, callbacks=[Spoil()])
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 3


@pytest.mark.usefixtures("second_checkpoint_finds_the_disk_full")
def test_full_disk_leaves_the_previous_checkpoint(tiny, tmp_path):
    with pytest.raises(OSError, match="No space left on device") as caught:
        trained(tiny, tmp_path)
    assert caught.value.filename == str(tmp_path / "checkpoints/last.ckpt")
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == STEPS_PER_EPOCH
    assert not list(tmp_path.rglob("*.part"))
    trained(tiny, tmp_path, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["metadata"]["recipe"]["epochs"] == 3


def test_no_validation_images(tiny, tmp_path):
    trained([*tiny, "--data.validation", "0"], tmp_path)
    assert set(rows(tmp_path)[0]) == {"epoch", "step", "train/loss_epoch"}


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"seed": -1}, {"seed": 2**32}, {"validate_every": 0}, {"gradient_clip": 0.0}, {"num_nodes": 0}]
)
def test_wrong_settings_are_repeated(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        Settings(**wrong)


def test_a_model_that_cannot_be_saved_is_refused_before_the_training(tmp_path: Path) -> None:
    job = build(parse(["--model=ann", "--model.units=1", "--model.width=4", "--data=digits", "--epochs=1"]))
    job.model = attach_exits(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), exits=1, input_size=(1, 8, 8))
    with pytest.raises(ValueError, match="built without create_model, so nothing says how to build it again"):
        job.fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", [10**6, "1000000"])
def test_more_devices_than_this_machine_has(devices):
    with pytest.raises(ValueError, match=r"devices must be at most \d+, the (cores|GPUs) of this machine, got .?1000000"):
        hardware_arguments(Settings(devices=devices))


def test_processes_of_torchrun_are_counted_by_torchrun(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    monkeypatch.setenv("WORLD_SIZE", "2000")
    found = hardware_arguments(Settings())
    assert (found["devices"], found["num_nodes"]) == (1000, 2)
