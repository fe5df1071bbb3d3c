"""Every recipe is complete: it is read, its training job is built on stand-in images, and it trains one step."""

from pathlib import Path

import pytest
import torch

from anytime import load
from anytime.data import Split
from anytime.training import fit
from anytime.training.build import build
from anytime.training.config import find, parse, read_recipe

RECIPES = sorted(Path(__file__).parents[1].joinpath("recipes").glob("*.yaml"))
SMALL = ["--epochs", "1", "--precision", "32-true", "--compile", "false", "--accelerator", "cpu", "--progress", "false"]


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path: Path, tmp_path, monkeypatch):
    recipe = read_recipe(path)
    assert "gradient_clip" in recipe, "whose default is for new trainings"
    data = find("data", recipe["data"]["class_path"])
    classes = 3

    def images(self, part: str) -> Split | None:
        count = {"train": 12, "test": 6}.get(part)
        if count is None:
            return None
        generator = torch.Generator().manual_seed(0)
        shape = (count, *self.input_size)
        pixels = torch.randint(256, shape, generator=generator).to(torch.uint8)
        return Split(pixels, torch.arange(count) % classes, "stand-in")

    monkeypatch.setattr(data, "read", images)
    monkeypatch.setattr(data, "read_names", lambda self: [[str(k) for k in range(classes)]])
    assert path.read_text().startswith("#"), "a recipe says what it is for"
    job = build(parse([*SMALL, "--data.batch_size", "4", "--strategy", "auto", "--devices", "1"], [path]))
    job.data.limit = 4
    trainer = fit(job.model, job.data, job.objective, job.optimizer, job.schedule, job.settings, tmp_path)
    assert trainer.global_step >= 1
    model = load(tmp_path)
    assert model.info.recipe["data"]["class_path"] == data.__name__
    assert model.num_classes == classes
