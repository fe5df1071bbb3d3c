"""CONTRIBUTING.md is true: the steps for a new family are executed in a copy of the library."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anytime

ROOT = Path(__file__).parents[1]
IN_TURN = """  # in one process, because each would take seconds to import torch
import json, sys
import anytime.cli, pytest
for program, *arguments in json.loads(sys.argv[1]):
    code = {"pytest": pytest.main, "anytime": anytime.cli.main}[program](arguments)
    if code:
        sys.exit(f"{program} {arguments} ended with {code}")
"""


def test_the_steps_for_a_new_family_work(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## A new model family", 1)[1].split("\n## ", 1)[0]
    shutil.copytree(Path(anytime.__file__).parent, tmp_path / "src/anytime", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = re.findall(r"^\*\*\d\.\*\* `([^`]+)`.*?^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert [Path(name).parts[0] for name, _ in files] == ["src", "tests", "recipes"]
    for name, content in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    commands = [line.removeprefix("$ ").split() for line in section.splitlines() if line.startswith("$ ")]
    assert len(commands) == 4
    for command in commands:
        if command[0] == "pytest":
            command += ["-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "3 passed" in done.stdout, done.stdout
