"""Directories written before modules moved still load: every old import path leads to a class or factory."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import anytime.models  # registers all models
from anytime.registry import find_factory
from anytime.support.names import import_object
from anytime.training.config import canonical_name, find

PATHS = (Path(__file__).parent / "old_import_paths.txt").read_text(encoding="utf-8").split()
SECTIONS = {"anytime.data": "data", "anytime.objectives": "objective", "anytime.training.regimes": "regime"}


@pytest.mark.parametrize("path", PATHS)
def test_old_import_path(path: str) -> None:
    last = path.rpartition(".")[2]
    if path.startswith("anytime.training.schedules."):
        assert find("schedule", canonical_name("schedule", path)).__name__ == {"Steps": "MultiStep"}.get(last, last)
        return
    section = next((name for room, name in SECTIONS.items() if path.startswith(f"{room}.")), None)
    if section:
        assert find(section, canonical_name(section, path)).__name__ == last
    found = find_factory(path) if last.islower() else import_object(path, "class")
    assert found.__name__ == last
    assert found.__module__.startswith("anytime.")


def test_no_two_classes_share_a_name() -> None:
    """A class whose module has moved is found by its name."""
    package = Path(anytime.__file__).parent
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in package.rglob("*.py")]
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
