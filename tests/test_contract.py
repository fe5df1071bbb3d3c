"""The contract test over all registered models."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import anytime.models  # noqa: F401, registers all models
from anytime.model import create_model
from anytime.registry import list_models
from anytime.testing import check_anytime_model


def small_arguments() -> dict[str, dict[str, Any]]:
    """Arguments that make a model quick, as the test of its family says: `CONTRACT_ARGUMENTS = {name: ...}`, a literal."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((Path(__file__).parent / "models").glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONTRACT_ARGUMENTS":
                found |= ast.literal_eval(node.value)
    return found


ARGUMENTS = small_arguments()  # a model without an entry is built with its defaults


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("input_size", [(3, 8, 8), (1, 9, 12)], ids=["rgb", "grey"])
def test_registered_models(name: str, input_size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, in_channels=input_size[0], **ARGUMENTS.get(name, {}))
    check_anytime_model(model, input_size)
