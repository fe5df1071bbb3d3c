"""Writes the published leaderboard into docs/leaderboard.md and README.md, from results/leaderboard/table_1_cifar10_fast.json.

python docs/fill_leaderboard.py
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE, PAGE, README = "results/leaderboard/table_1_cifar10_fast.json", "docs/leaderboard.md", "README.md"
COLUMNS = ("network", "area", "first answer", "last answer", "ms", "below static", "parameters", "training min")


def line(row: Mapping[str, Any], most_seconds: float) -> str:
    """A line of the table of the page."""
    first, last = (f"{row['accuracy'][t]:.1%} at {row['macs'][t] / 1e6:.1f} M" for t in (0, -1))
    minutes = f"{row['training_seconds'] / 60:.1f}"
    cells = [
        row["network"] + " (static)" * row["static"],
        f"{row['area']:.4f}",
        "" if row["static"] else first,
        last,
        f"{1e3 * row['seconds'][-1]:.2f}",
        "" if row["static"] else f"{row['below_static']} of {len(row['macs'])}",
        f"{row['parameters'] / 1e6:.2f} M",
        minutes + " (over 15)" * (row["training_seconds"] > most_seconds),
    ]
    return f"| {' | '.join(cells)} |"


def filled_page(page: str, table: Mapping[str, Any]) -> str:
    """The page with the table of these results, and the networks that they lack."""
    most = table["most_training_seconds_at_fast_scale"]
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS))]
    lines += [line(row, most) for row in table["rows"]]
    if missing := table["not_trained_yet"]:
        lines += ["", f"Not trained yet: {'; '.join(missing)}."]
    text, count = re.subn(r"(?<=\n)\| network \|.*?(?=\n\n## )", lambda _: "\n".join(lines), page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE} has {count} tables that begin with '| network |' and end before a heading, not one")
    return text


def filled_readme(readme: str, table: Mapping[str, Any]) -> str:
    """The front page with the numbers of answers and networks in these results."""
    rows = [row for row in table["rows"] if not row["static"]]
    beaten, answers = sum(row["below_static"] for row in rows), sum(len(row["macs"]) for row in rows)
    text, count = re.subn(r"\d+ of the \d+ answers of anytime", f"{beaten} of the {answers} answers of anytime", readme)
    if count != 1:
        raise ValueError(f"{README} says {count} times how many answers are below a static network, not once")
    return text


def main() -> None:
    """Writes both."""
    table = json.loads((ROOT / TABLE).read_text(encoding="utf-8"))
    for name, fill in ((PAGE, filled_page), (README, filled_readme)):
        file = ROOT / name
        file.write_text(fill(file.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
