"""Runs the examples and keeps what they print and draw in docs/images/examples, for the gallery; use a quiet machine.

python docs/run_examples.py [NAME ...]
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs/images/examples"

KEPT.mkdir(parents=True, exist_ok=True)
for name in sys.argv[1:] or sorted({file.stem for file in (ROOT / "examples").glob("*.py")} - {"real_backbone"}):  # an hour
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / f"examples/{name}.py")]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        shutil.copy(Path(folder) / f"runs/{name}.png", KEPT)
    (KEPT / f"{name}.txt").write_text(done.stdout, encoding="utf-8")
    print(f"{name}:\n{done.stdout}")
