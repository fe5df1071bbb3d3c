"""`python -m anytime_edge DIR [REPEATS]` measures each step on this machine and writes `profile.json` into the folder."""

import json
import sys
from pathlib import Path

from anytime_edge import load, profile

if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    measured = profile(load(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 1000)
    for t, row in enumerate(measured.steps, 1):
        print(f"step {t}: " + ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in row.items()))
    Path(sys.argv[1], "profile.json").write_text(json.dumps(measured.data, indent=1) + "\n")
