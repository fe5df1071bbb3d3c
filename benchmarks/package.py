"""Puts a trained run into the package: its weights in float16, and a card with what those reach on the test images.

Run it after the recipe is frozen: it reads the test images. The folder of the package must be new, and that of the
results without earlier ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import anytime
from anytime.reporting.card import model_card
from anytime.reporting.evaluation import evaluate_run
from anytime.saving import CARD

ROOT = Path(__file__).parents[1]
MOST = 5_000_000  # bytes of weights in the package
KEPT = ("metrics-test.json", "speed_accuracy.png", "per_class.png")


def package(run: Path, folder: Path, results: Path, trained_on: str, notes: str, root: Path | None = None) -> None:
    """Saves the run's model in float16 in `folder` with its card, and its measurements in `results`."""
    for new in (folder, *(results / name for name in KEPT)):
        if new.exists():
            raise SystemExit(f"{new} exists already; remove it first")
    model = anytime.load(run)
    elements = sum(tensor.numel() for tensor in model.state_dict().values())
    if 2 * elements > MOST:
        raise SystemExit(f"{run} has {elements:,} numbers, more than {MOST // 2:,}, which fit into {MOST:,} bytes of float16")
    model.half().save(folder)
    with tempfile.TemporaryDirectory() as scratch:
        evaluation = evaluate_run(folder, "test", root, out=Path(scratch))
        results.mkdir(parents=True, exist_ok=True)
        for path in Path(scratch).rglob("*"):
            if path.name in KEPT:
                shutil.copy(path, results)
    metrics = results / KEPT[0]
    measured = {"command": f"anytime evaluate {folder.name}", **json.loads(metrics.read_text(encoding="utf-8"))}
    metrics.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    card = model_card(folder.name, anytime.load(folder), evaluation.numbers, trained_on, notes)
    (folder / CARD).write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("name", help="name of the packaged model")
    parser.add_argument("--trained-on", default="", help="hardware and duration, for the card")
    parser.add_argument("--notes", type=Path, help="a file with paragraphs for the card: the order of events, doubts")
    parser.add_argument("--root", type=Path, help="folder of the data")
    options = parser.parse_args()
    notes = options.notes.read_text(encoding="utf-8").strip() if options.notes else ""
    folder, results = ROOT / "src" / "anytime" / "weights" / options.name, ROOT / "results" / options.name
    package(options.run, folder, results, options.trained_on, notes, options.root)
    print(f"wrote {folder} and {results}")


if __name__ == "__main__":
    main()
