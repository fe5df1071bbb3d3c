"""Every published number names the command that made it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", sorted(ROOT.glob("results/*/*.json")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_results_name_their_command(file: Path) -> None:
    command = json.loads(file.read_text(encoding="utf-8"))["command"]
    assert re.match(r"(OMP_NUM_THREADS=\d+ )?(anytime (study|train|evaluate) |python benchmarks/)", command), command
    for script_or_recipe in re.findall(r"(?:benchmarks|recipes)/\w+\.(?:py|yaml)", command):
        assert (ROOT / script_or_recipe).is_file(), script_or_recipe
