"""An export of two steps, the second of many operators, loaded once for each file of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from written_by_hand import graph, written


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [graph(1).SerializeToString(), graph(2, 60).SerializeToString()]


@pytest.fixture(scope="module")
def folder(files: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("edge") / "export", files)


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    import anytime_edge

    return anytime_edge.load(folder)
