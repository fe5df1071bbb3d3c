"""CONTRIBUTING.md is true: the steps for a new family are executed in a copy of the library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anytime

ROOT = Path(__file__).parents[1]


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
    for program, *arguments in commands:
        extra = ["-q", "-n", "0", "-p", "no:cacheprovider"] if program == "pytest" else []
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments, *extra],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        if program == "pytest":
            assert "3 passed" in done.stdout, done.stdout
