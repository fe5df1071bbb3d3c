"""The moving average of the weights: what it is, what is validated and saved, and that a resumed training continues it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from anytime.cli import main
from anytime.training import Settings
from anytime.training.build import build
from anytime.training.callbacks import Interrupted
from anytime.training.checkpoints import read_checkpoint
from anytime.training.config import parse
from anytime.training.fit import fit
from anytime.training.means import moving_average

CHECKPOINT = "checkpoints/last.ckpt"


def trained(flags, run, **more):
    job = build(parse([*flags, "--average", "0.3"]))
    parts = (job.model, job.data, job.objective, job.optimizer, job.schedule, job.settings)
    return job, fit(*parts, run, **more)


def test_the_average_is_saved_and_validated(tiny, each, tmp_path, monkeypatch):
    """a <- d a + (1 - d) w after every step, of statistics too, d = (1 + n) / (10 + n) while that is below 0.3."""
    seen = []
    job, trainer = trained(tiny, tmp_path, callbacks=[each(lambda module, _: seen.append(copied(module.model)))])
    # `each` is called before a step, so the weights after the last step are those that the checkpoint keeps
    last = {name[6:]: value for name, value in read_checkpoint(tmp_path / CHECKPOINT)["current_model_state"].items()}
    average, *rest = [*seen[1:], {name: last[name] for name in seen[0]}]
    for weights, d in zip(rest, (2 / 11, 3 / 12, 4 / 13, *5 * (0.3,)), strict=True):
        d = min(d, 0.3)
        average = {name: d * value + (1 - d) * weights[name] for name, value in average.items()}
    saved = load_file(tmp_path / "model.safetensors")
    for name, value in average.items():
        torch.testing.assert_close(saved[name].double(), value, rtol=1e-5, atol=1e-6, msg=name)
    assert any(not torch.allclose(saved[name].double(), last[name].double()) for name in average)
    answers = []
    for images, target in job.data.val_dataloader():
        with torch.no_grad():
            answers.append((job.model(images)[-1].argmax(1) == target).float())
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(float(torch.cat(answers).mean()), abs=1e-6)


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict().items()
    return {name: value.detach().double().clone() for name, value in state if value.is_floating_point()}


def test_a_resumed_training_continues_the_average(tiny, interrupt, tmp_path):
    trained(tiny, tmp_path / "whole")
    for step in (1, 5):
        run = tmp_path / f"interrupted{step}"
        with pytest.raises(Interrupted):
            trained(tiny, run, callbacks=[interrupt(step)])
        trained(tiny, run, resume=True)
        whole, resumed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", run))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_without_the_average_is_refused(tiny, interrupt, tmp_path, capsys):
    run, job = tmp_path / "run", build(parse(tiny))
    parts = (job.model, job.data, job.objective, job.optimizer, job.schedule, job.settings)
    with pytest.raises(Interrupted):
        fit(*parts, run, callbacks=[interrupt(4)])
    Path(run / "config.yaml").write_text(yaml.safe_dump(job.config | {"average": 0.7}))
    Path(run / "run.json").write_text(json.dumps({"format": 1, "anytime": "", "state": "interrupted"}))
    assert main(["train", "--resume", str(run), "--trust"]) == 1
    assert "last.ckpt does not fit the configuration: " in capsys.readouterr().err


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_decays_out_of_range(decay):
    with pytest.raises(ValueError, match=rf"average must lie strictly between 0 and 1, got {decay}"):
        Settings(average=decay)


def test_integers_are_not_averaged():
    average = moving_average(0.999)
    one, three = torch.tensor([1, 2]), torch.tensor([3, 3])
    assert torch.equal(average(one, three, torch.tensor(500)), three)
    same = torch.full((3,), 0.1)
    assert torch.equal(average(same, same, torch.tensor(5)), same)
    assert average(torch.zeros(1), torch.ones(1), torch.tensor(1)).item() == pytest.approx(9 / 11)
    assert average(torch.zeros(1), torch.ones(1), torch.tensor(10**6)).item() == pytest.approx(0.001, rel=1e-4)
